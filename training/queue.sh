#!/usr/bin/env bash
# Trains the generator, a lane a core, from whatever is done already:
#   bash training/queue.sh pixels 1
#   bash training/queue.sh words 0
# Logs are in training/cache/logs. Minutes are totals of processor time: raise them and start it
# again, and each network goes on from where its rate had not fallen yet.
set -euo pipefail
cd "$(dirname "$0")/.."
lane=$1 core=$2 python=${PYTHON:-python}
export OMP_NUM_THREADS=1
mkdir -p training/cache/logs

step() { # name, module and its arguments; what it prints goes to a log of that name
    local name=$1
    shift
    echo "$(date +%H:%M) $*"
    taskset -c "$core" "$python" -m "$@" >>"training/cache/logs/$name.log" 2>&1
}

waits() { until [ -e "training/cache/$1" ]; do sleep 20; done; }

case $lane in
pixels)
    step vae training.vae small --minutes "${SMALL:-46}"
    waits prior/text.done # the decoder reads the prior's text encoder
    step decoder training.decoder train --focus 3 --minutes "${DECODER:-170}"
    step decoder training.decoder train --focus 3 --minutes "$((${DECODER:-170} + 12))" \
        --fall 0.5 --middle -0.6 # crisp edges
    ;;
words)
    step text training.text corpus
    step text training.text tokenizer
    [ -e training/cache/text/prior.pt ] || step text training.text distil prior --minutes 9
    [ -e training/cache/samples/axes.pt ] || step samples training.samples axes
    for seed in 0 1 2; do step samples training.samples make --count 15000 --seed $seed; done
    [ -e training/cache/prior/text.done ] ||
        step prior training.prior train --focus 4 --fall 0 --minutes "${TEXT:-90}"
    touch training/cache/prior/text.done
    step prior training.prior train --focus 4 --text-rate 0 --minutes "${PRIOR:-150}"
    step grow training.vae grow --minutes "${LARGE:-30}"
    ;;
*)
    echo "The lanes are pixels and words." >&2
    exit 2
    ;;
esac

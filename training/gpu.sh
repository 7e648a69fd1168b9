#!/usr/bin/env bash
# On a machine with a GPU, from the repository's root, with training/cache/pack (training/pack.py):
#   bash training/gpu.sh OUT          # composes images on all cores, trains prior and decoder beside
#                                     # each other; about nine minutes in all by default
#   bash training/gpu.sh OUT codes    # fits the codes of details to the U-Net that ships
# Every two minutes, the averaged weights so far are in OUT. The text encoder stays, for the decoder
# reads it. For a trial without a GPU:
#   DEVICE=cpu BATCH=8 COUNT=200 WORKERS=1 PRIOR=0.3 DECODER=0.3 bash training/gpu.sh OUT
#   DEVICE=cpu CODES=0.3 bash training/gpu.sh OUT codes
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 what=${2:-networks} python=${PYTHON:-python3} device=${DEVICE:-cuda} batch=${BATCH:-1024}
workers=${WORKERS:-$(nproc)} count=${COUNT:-9000}
say() { echo "$SECONDS s: $*"; }

case $what in networks | codes) ;; *) echo "OUT, then networks or codes." >&2 && exit 2 ;; esac
$python -m training.pack unpack
say "unpacked"
trained=()
if [ "$what" = networks ]; then
    seq 0 $((workers - 1)) | OMP_NUM_THREADS=1 xargs -P "$workers" -I{} \
        $python -m training.samples make --count "$count" --seed {}
    say "composed $((workers * count)) images"
    compiled=$([ "$device" = cpu ] || echo --compiled)
    $python -m training.prior train --minutes "${PRIOR:-5}" --batch "$batch" --lr 1e-3 \
        --text-rate 0 --device "$device" $compiled & trained+=($!)
    $python -m training.decoder train --minutes "${DECODER:-5}" --batch "$batch" --lr 1.5e-3 \
        --device "$device" $compiled & trained+=($!)
else
    $python -m training.codes fit --minutes "${CODES:-8}" --device "$device" & trained+=($!)
fi
while [ -n "$(jobs -rp)" ]; do
    for _ in $(seq 12); do [ -z "$(jobs -rp)" ] || sleep 10; done
    $python -m training.pack send "$out" && say "sent"
done
for one in "${trained[@]}"; do wait "$one"; done # fails if one of them failed

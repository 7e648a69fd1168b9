#!/usr/bin/env bash
# On a machine with a GPU, from the repository's root, with training/cache/pack (training/pack.py):
#   bash training/gpu.sh OUT
# It composes images on all cores, then trains prior and decoder beside each other, and
# leaves their averaged weights in OUT every two minutes. The text encoder stays, for the decoder
# reads it. About nine minutes in all by default. For a trial
# without a GPU: DEVICE=cpu BATCH=8 COUNT=200 WORKERS=1 PRIOR=0.3 DECODER=0.3 bash training/gpu.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 python=${PYTHON:-python3} device=${DEVICE:-cuda} batch=${BATCH:-1024}
workers=${WORKERS:-$(nproc)} count=${COUNT:-9000}
say() { echo "$SECONDS s: $*"; }

$python -m training.pack unpack
say "unpacked"
seq 0 $((workers - 1)) | OMP_NUM_THREADS=1 xargs -P "$workers" -I{} \
    $python -m training.samples make --count "$count" --seed {}
say "composed $((workers * count)) images"
compiled=$([ "$device" = cpu ] || echo --compiled)
$python -m training.prior train --minutes "${PRIOR:-5}" --batch "$batch" --lr 1e-3 \
    --text-rate 0 --device "$device" $compiled & prior=$!
$python -m training.decoder train --minutes "${DECODER:-5}" --batch "$batch" --lr 1.5e-3 \
    --device "$device" $compiled & decoder=$!
while [ -n "$(jobs -rp)" ]; do
    for _ in $(seq 12); do [ -z "$(jobs -rp)" ] || sleep 10; done
    $python -m training.pack send "$out" && say "sent"
done
wait "$prior" && wait "$decoder"  # fails if one of them failed

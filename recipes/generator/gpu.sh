#!/usr/bin/env bash
# A short run on a machine with a GPU, torch, accelerate, kornia and rich: no network, no package index, the clock running.
#   gpu.sh pack RUN PORTRAITS...   here: data, weights and frozen features into $PACK (an ignored folder, under 64 MiB);
#                                  where RUN has no state yet, training starts from what came back to it, else from the
#                                  weights beside this file
#   gpu.sh train OUT               there, in the repository with $PACK carried along: 128 px, then 256 px, weights to OUT; begins
#                                  with what was packed, whatever was trained or rehearsed since
#   gpu.sh unpack OUT RUN          here: RUN starts from what came back
# The limits are variables, so that the whole can be rehearsed on a CPU in two minutes:
#   SECONDS_SMALL=60 SECONDS_LARGE=60 BATCH=8 gpu.sh train OUT
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
PACK=${PACK:-$HERE/../../runs/gpu}
PYTHON=${PYTHON:-python3}
SMALL=${SMALL:-128} LARGE=${LARGE:-256}                           # pixels
SECONDS_SMALL=${SECONDS_SMALL:-230} SECONDS_LARGE=${SECONDS_LARGE:-290}  # 10 minutes with starts and ends; 0: without
BATCH=${BATCH:-64}
LIMIT_MIB=${LIMIT_MIB:-64}
# shellcheck disable=SC2206  # words on purpose
EXTRA=(${EXTRA:-})

as_packages() {  # source folders under their import names, where the package is not installed
  local links=$PACK/import
  mkdir -p "$links/stylepairs"
  for folder in kernels datagen i2i; do ln -sfn "$(cd "$HERE/../.." && pwd)/$folder" "$links/stylepairs/$folder"; done
  export PYTHONPATH=$links${PYTHONPATH:+:$PYTHONPATH}
}

pack() {
  local run=$1
  shift
  rm -rf "$PACK"
  as_packages
  "$PYTHON" "$HERE/pack.py" data --portraits "$@" ${TRUNK:+--trunk "$TRUNK"} --to "$PACK/data"
  if [ -e "$run/state.safetensors" ]; then
    "$PYTHON" "$HERE/pack.py" weights --run "$run" --to "$PACK/weights"
  elif [ -e "$run/from_gpu" ]; then
    cp -r "$run/from_gpu" "$PACK/weights"
  fi
  local mib
  mib=$(du -sm "$PACK" | cut -f1)
  echo "$PACK: $mib MiB"
  [ "$mib" -le "$LIMIT_MIB" ] || { echo "over $LIMIT_MIB MiB; lower the qualities in pack.py" >&2; exit 1; }
}

train() {
  local out=$1 run=$PACK/run start=$PACK/weights
  [ -d "$start" ] || start=$HERE/weights
  mkdir -p "$out"
  rm -rf "$run"
  as_packages
  "$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
  local portraits=("$PACK"/data/[0-9]*)
  local common=(--portraits "${portraits[@]}" --trunk "$PACK/data/trunk.pth" --start-from "$start" --out "$run"
    --batch "$BATCH" --save-every 50000 --sheet-every 100000 "${EXTRA[@]}")
  for stage in "$SMALL $SECONDS_SMALL" "$LARGE $SECONDS_LARGE"; do
    set -- $stage
    [ "$2" != 0 ] || continue
    # What a stage that fails leaves behind still comes back: the state of the one before.
    "$PYTHON" -u "$HERE/train.py" "${common[@]}" --stages "$1:1000000000" --minutes "$("$PYTHON" -c "print($2 / 60)")" \
      || echo "the stage at $1 px failed" >&2
    "$PYTHON" "$HERE/pack.py" weights --run "$run" --to "$out"
    for file in log.jsonl samples.png; do [ ! -e "$run/$file" ] || cp "$run/$file" "$out/"; done
  done
}

unpack() {
  local out=$1 run=$2
  mkdir -p "$run/from_gpu"
  cp "$out"/*.safetensors "$run/from_gpu/"
  [ ! -e "$run/state.safetensors" ] || mv "$run/state.safetensors" "$run/state_before_gpu.safetensors"
  [ ! -e "$out/log.jsonl" ] || cat "$out/log.jsonl" >> "$run/log.jsonl"
  echo "go on with: train.py --out $run --start-from $run/from_gpu --stages RESOLUTION:IMAGES ..."
}

"$@"

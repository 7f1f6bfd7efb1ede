#!/usr/bin/env bash
# All that matters on one GPU, most important first; see usage below.

set -u

usage() {
    cat <<'EOF'
usage: benchmarks/gpu_suite.sh [FOLDER [PART...]]

Runs the benchmarks on one GPU in under 10 minutes, the most important first.
Needs jax (with its GPU build), flax and optax; with torch and timm, PyTorch is
timed beside them. Each part has a time limit of its own and leaves PART.json,
PART.txt (its tables) and PART.log in FOLDER (default: ./gpu_results). A part
that fails does not keep the others from running; the last ones are left out
when the time is up, unless they are named.

Parts: price        ResNeXt-101 32x4d against ResNet-101, training, bfloat16
       small        ResNeXt-50 32x4d against torch.compile, bfloat16
       large        ResNeXt-101 64x4d against torch.compile, bfloat16
       conv_small   3x3 convolutions of ResNeXt-50 32x4d, bfloat16: native, and packs of 16 to 128
                    channels, each a convolution or all of them one grouped convolution
       conv_large   the same of ResNeXt-101 64x4d
       lowerings    ResNeXt-50 32x4d with native and both packed lowerings, training, bfloat16
       forms_bc     ResNeXt-50 32x4d in forms b and c, training, bfloat16
       forms_ac     the same in forms a and c
       detection    both stages of a detector, full size, bfloat16 (needs the data libraries too)

Environment: PYTHON         interpreter (default: python3)
             SUITE_SECONDS  limit of the whole (default: 585)

Exit status: 0, or 1 if any part failed or was left out, or 2 if there is no GPU.
EOF
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
-*)
    usage >&2
    exit 2
    ;;
esac

folder=${1:-./gpu_results}
if [ $# -gt 0 ]; then
    shift
fi
chosen=" $* "
python=${PYTHON:-python3}
benchmarks=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 2
deadline=$((SECONDS + ${SUITE_SECONDS:-585}))
least=20 # seconds; with less left, a part is not begun
summary=()
status=0

# part NAME LIMIT BENCHMARK OPTION...: runs it, at most LIMIT seconds.
part() {
    local name=$1 limit=$2 benchmark=$3
    shift 3
    if [[ $chosen != "  " && $chosen != *" $name "* ]]; then
        return
    fi
    local left=$((deadline - SECONDS))
    if [ "$left" -lt "$least" ]; then
        summary+=("$name: left out, no time was left")
        status=1
        return
    fi
    if [ "$limit" -gt "$left" ]; then
        limit=$left
    fi
    echo "== $name (at most $limit s): $benchmark $*"
    local start=$SECONDS
    timeout --kill-after=5 "$limit" "$python" "$benchmarks/$benchmark" "$@" \
        --json "$folder/$name.json" >"$folder/$name.txt" 2>"$folder/$name.log"
    local code=$?
    local took=$((SECONDS - start))
    cat "$folder/$name.txt"
    if [ "$code" -eq 0 ]; then
        local rows
        rows=$(grep -c ': failed: ' "$folder/$name.txt")
        summary+=("$name: done in $took s, $rows failed rows")
        return
    fi
    status=1
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        summary+=("$name: cut off after $took s; $name.json has the tables before")
    else
        summary+=("$name: failed with status $code after $took s")
        tail -n 5 "$folder/$name.log"
    fi
}

mkdir -p "$folder" || exit 2
if command -v nvidia-smi >/dev/null; then
    nvidia-smi >"$folder/nvidia-smi.txt" 2>&1
fi
if ! "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")'; then
    echo "error: $python has no JAX that sees a GPU" >&2
    exit 2
fi

# Few rounds and short ones: compiling takes most of the time.
quick=(--rounds 10 --limit 5)

part price 200 train_step.py --models resnet101 resnext101_32x4d --dtypes bfloat16 \
    --batches 64 256 --modes training "${quick[@]}"
part small 130 train_step.py --models resnext50_32x4d --dtypes bfloat16 \
    --batches 256 --torch compile --python-overhead "${quick[@]}"
part large 180 train_step.py --models resnext101_64x4d --dtypes bfloat16 \
    --batches 128 --torch compile "${quick[@]}"
# A GPU's packs have 16 channels where no other width is asked for.
packs=(--implementations native packed grouped_packs --pack-channels 32 64 128)
part conv_small 150 grouped_conv.py --network resnext50_32x4d --dtype bfloat16 --batch 64 \
    "${packs[@]}" --rounds 5 --limit 0.5
part conv_large 150 grouped_conv.py --network resnext101_64x4d --dtype bfloat16 --batch 64 \
    "${packs[@]}" --rounds 5 --limit 0.5
part lowerings 150 train_step.py --models resnext50_32x4d --dtypes bfloat16 --batches 64 \
    --implementations native packed grouped_packs --modes training "${quick[@]}"
part forms_bc 90 train_step.py --models resnext50_32x4d --forms c b --dtypes bfloat16 \
    --batches 64 --modes training "${quick[@]}"
part forms_ac 150 train_step.py --models resnext50_32x4d --forms c a --dtypes bfloat16 \
    --batches 64 --modes training "${quick[@]}"

part detection 200 detection_steps.py --models resnet50 resnext50_32x4d --dtype bfloat16 \
    --batch 2 --steps 20 "${quick[@]}"

echo "== summary"
if [ ${#summary[@]} -eq 0 ]; then
    echo "no part of that name:$chosen" >&2
    exit 2
fi
printf '%s\n' "${summary[@]}" | tee "$folder/summary.txt"
exit "$status"

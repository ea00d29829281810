#!/usr/bin/env bash
# Set-up and every documented command by name. The first call makes .venv beside this file.
#
#   bash run.sh demo                       train, prune and compare on real data, about a minute
#   bash run.sh test [pytest options]      the test suite
#   bash run.sh demo_yolov3                the same with a detector, 4 minutes
#   bash run.sh deploy_demo                export two networks: sizes, accuracy, latency
#   bash run.sh threshold|ratio|multi_gpu|evaluate [options]
#   bash run.sh yolov3_threshold [options] YOLOv3 on Pascal VOC, 150,000 steps on four GPUs
#   bash run.sh resume --resume_epoch N [options]
#   bash run.sh gpu_check                  does the GPU compute what the CPU computes, and how fast?
#   bash run.sh parity                     PaddleSlim's pruner and this one, step by step
#   bash run.sh peers                      runtimes for benchmarks/inference, in .venv-peers and
#                                          .venv-deepsparse
#
# Options after the name are passed on, later ones win: bash run.sh ratio --ratio 0.75.
# Environment: PYTHON (python3), VENV (.venv beside this file), EXTRAS (cpu,test or gpu,test),
# LAUNCH_OPTIONS (--gpus=0,1,2,3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${VENV:-$here/.venv}

die() {
  echo "run.sh: error: $*" >&2
  exit 2
}

install() {
  local python=${PYTHON:-python3} extras=${EXTRAS:-} log stamp
  command -v "$python" >/dev/null || die "no $python; install Python 3.9 to 3.13, or set PYTHON"
  if [ -z "$extras" ]; then
    if nvidia-smi >/dev/null 2>&1; then extras=gpu,test; else extras=cpu,test; fi
  fi
  stamp="$extras $(cksum <"$here/pyproject.toml")"
  if [ "$(cat "$venv/.ready" 2>/dev/null)" = "$stamp" ] && [ -x "$venv/bin/python" ]; then return; fi
  "$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' ||
    die "$("$python" --version) is not supported; install Python 3.9 to 3.13, or set PYTHON"
  echo "run.sh: installing [$extras] into $venv (once)" >&2
  log=$(mktemp) || die "cannot write a temporary file; free some disk space"
  {
    "$python" -m venv "$venv" &&
      "$venv/bin/python" -m pip install --disable-pip-version-check "${here}[$extras$programs]" &&
      "$venv/bin/python" -m pip uninstall -y paddle-unstructured-pruning && # no stale copy of it
      rm -rf "$here/build" "$here"/*.egg-info &&
      echo "$stamp" >"$venv/.ready"
  } >"$log" 2>&1 || {
    ! grep -q 'No space left' "$log" || die "the disk is full; .venv needs about 2 GB"
    ! grep -qE 'ensurepip|No module named (venv|pip)' "$log" ||
      die "$python has no pip or venv; on Debian: apt-get install python3-venv"
    die "installing failed: $(grep -iE 'error' "$log" | tail -n 1); all of it is in $log"
  }
  rm -f "$log"
}

command=${1:-} programs=,programs
[ $# -eq 0 ] || shift
case $command in
  demo | demo_yolov3 | test | threshold | ratio | multi_gpu | yolov3_threshold | resume) ;;
  evaluate | gpu_check | deploy_demo) ;;
  parity) venv=${VENV:-$here/.venv-parity} EXTRAS=parity,test ;; # PaddleSlim needs Paddle 2.6
  peers) venv=$here/.venv-peers EXTRAS=peers programs= ;;
  *)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    die "${command:+unknown command $command; }give one of the above"
    ;;
esac
install
python=$venv/bin/python
export PYTHONWARNINGS="ignore:No ccache found:UserWarning${PYTHONWARNINGS:+,$PYTHONWARNINGS}"

run() { # a file of this project, from any folder: -m would find modules of that folder first
  local file=$here/$1
  shift
  PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$file" "$@"
}

launch() {
  [ -n "${LAUNCH_OPTIONS:-}" ] || nvidia-smi >/dev/null 2>&1 ||
    die "no GPU here; on CPUs: LAUNCH_OPTIONS='--nproc_per_node 2' bash run.sh $command"
  # LAUNCH_OPTIONS is a list:
  # shellcheck disable=SC2086
  exec "$python" -m paddle.distributed.launch ${LAUNCH_OPTIONS:---gpus=0,1,2,3} "$@"
}

by_threshold=(--data imagenet --lr 0.05 --pruning_mode threshold --threshold 0.01)
case $command in
  demo) run demos/classify.py "$@" ;;
  demo_yolov3) run demos/detect.py "$@" ;;
  deploy_demo) run demos/deploy.py "$@" ;;
  test) cd "$here" && exec "$python" -m pytest "$@" ;;
  threshold) exec "$python" "$here/train.py" "${by_threshold[@]}" "$@" ;;
  ratio)
    exec "$python" "$here/train.py" --data imagenet --lr 0.05 --pruning_mode ratio --ratio 0.55 "$@" ;;
  multi_gpu)
    launch --log_dir=train_mbv1_imagenet_threshold_001_log \
      "$here/train.py" "${by_threshold[@]}" --batch_size 256 "$@" ;;
  # Of the 16,551 pictures 150,000 steps of 4 x 8 are 290 epochs: the recipe's 270, stretched.
  yolov3_threshold)
    launch --log_dir=train_yolov3_voc_threshold_001_log \
      "$here/train.py" --data voc --model yolov3 --lr 0.001 --pruning_mode threshold --threshold 0.01 \
      --batch_size 8 --num_epochs 291 --step_epochs 232 261 --mixup_epochs 269 --max_steps 150000 "$@" ;;
  resume)
    [[ " $* " == *" --resume_epoch"* || " $* " == *" --last_epoch"* ]] ||
      die "after which epoch? bash run.sh resume --resume_epoch 29"
    exec "$python" "$here/train.py" "${by_threshold[@]}" --pretrained_model models/ "$@" ;;
  evaluate) exec "$python" "$here/evaluate.py" --pruned_model models/ --data imagenet "$@" ;;
  gpu_check) run benchmarks/gpu_check.py "$@" ;;
  peers)
    "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' ||
      die "OpenVINO and MNN are there; for DeepSparse set PYTHON to a Python 3.8 to 3.11"
    venv=$here/.venv-deepsparse EXTRAS=deepsparse install
    ;;
  parity) cd "$here" && exec "$python" -m pytest tests/parity "$@" ;;
esac

# Does the slice exist?
gcloud compute tpus tpu-vm describe carpet --zone=europe-west4-b --quiet --format=json
# If not:
gcloud compute tpus queued-resources create carpet --zone=europe-west4-b --quiet --node-id=carpet --accelerator-type=v6e-4 --runtime-version=v2-alpha
# Repeat until it is ACTIVE:
gcloud compute tpus queued-resources describe carpet --zone=europe-west4-b --quiet --format=json
# Install the code:
tar --create --gzip --file=/tmp/devnet_jax.tar.gz --exclude=__pycache__ --directory=/home/me/devnet_jax pyproject.toml README.md devnet_jax configs
gcloud compute tpus tpu-vm scp /tmp/devnet_jax.tar.gz carpet:devnet_jax.tar.gz --zone=europe-west4-b --quiet --worker=all
gcloud compute tpus tpu-vm ssh carpet --zone=europe-west4-b --quiet --worker=all '--command=mkdir -p devnet_jax || exit
tar --extract --gzip --file=devnet_jax.tar.gz --directory=devnet_jax || exit
cd devnet_jax || exit
{ PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv && python3 -m uv pip install --quiet --python=.venv/bin/python '"'"'.[tpu]'"'"'
} || exit'
# Run:
gcloud compute tpus tpu-vm ssh carpet --zone=europe-west4-b --quiet --worker=all '--command=cd devnet_jax || exit 1
exec 9>.lock
flock --wait 120 --conflict-exit-code 76 9 || exit
.venv/bin/python -m devnet_jax.main --cluster=tpu --workdir=runs/carpet &
echo $! >.pid
wait $!
status=$?
rm -f .pid
echo "devnet_jax on $(hostname) ended with status $status"
exit $status'
# Fetch the workdir:
mkdir -p runs
gcloud compute tpus tpu-vm scp carpet:devnet_jax/runs/carpet runs --zone=europe-west4-b --quiet --recurse --worker=0
# Delete the slice when it is no longer needed:
gcloud compute tpus queued-resources delete carpet --zone=europe-west4-b --quiet --force

# Does the slice exist?
gcloud compute tpus tpu-vm describe carpet --zone=europe-west4-b --project=vision --quiet --format=json
# If not:
gcloud compute tpus tpu-vm create carpet --zone=europe-west4-b --project=vision --quiet --accelerator-type=v5litepod-16 --version=v2-alpha --spot
# Install the code:
tar --create --gzip --file=/tmp/devnet_jax.tar.gz --exclude=__pycache__ --directory=/home/me/devnet_jax pyproject.toml README.md devnet_jax configs
gcloud compute tpus tpu-vm scp /tmp/devnet_jax.tar.gz carpet:devnet_jax.tar.gz --zone=europe-west4-b --project=vision --quiet --worker=all
gcloud compute tpus tpu-vm ssh carpet --zone=europe-west4-b --project=vision --quiet --worker=all '--command=mkdir -p devnet_jax || exit
tar --extract --gzip --file=devnet_jax.tar.gz --directory=devnet_jax || exit
cd devnet_jax || exit
{ PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv && python3 -m uv pip install --quiet --python=.venv/bin/python '"'"'.[tpu]'"'"'
} || exit
{ gcloud storage cp --recursive gs://bucket/data .
} || exit'
# Run:
gcloud compute tpus tpu-vm ssh carpet --zone=europe-west4-b --project=vision --quiet --worker=all '--command=cd devnet_jax || exit 1
exec 9>.lock
flock --wait 120 --conflict-exit-code 76 9 || exit
.venv/bin/python -m devnet_jax.main --cluster=tpu --workdir=gs://bucket/run '"'"'two words'"'"' '"'"'it'"'"'"'"'"'"'"'"'s'"'"' '"'"'say "so"'"'"' '"'"'$HOME $(id) ${x} `id` $$ $'"'"' '"'"'new
line
'"'"' '"'"'	tab  and  spaces '"'"' '"'"'größe ✓ 𝛼'"'"' '"'"''"'"' '"'"'back\slash\'"'"' '"'"'*?[a-z]{a,b}~!#'"'"' '"'"'a;b|c&d>e<f(g)%h'"'"' -- - '"'"'--after=the dashes'"'"' &
echo $! >.pid
wait $!
status=$?
rm -f .pid
echo "devnet_jax on $(hostname) ended with status $status"
exit $status'
# Delete the slice when it is no longer needed:
gcloud compute tpus tpu-vm delete carpet --zone=europe-west4-b --project=vision --quiet

env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -m devnet_jax.main --coordinator=127.0.0.1:4242 --num_processes=2 --process_id=0 --config=configs/quickstart.py '--workdir=my runs' &
env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -m devnet_jax.main --coordinator=127.0.0.1:4242 --num_processes=2 --process_id=1 --config=configs/quickstart.py '--workdir=my runs' >worker-00001.log 2>&1 &
wait

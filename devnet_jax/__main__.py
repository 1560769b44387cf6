"""Entry point of `devnet` and `python -m devnet_jax`; runs `devnet_jax.main`."""

import runpy


def main() -> None:
    """Runs `devnet_jax.main` as the main module, whose flags absl's --help lists."""
    runpy.run_module("devnet_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

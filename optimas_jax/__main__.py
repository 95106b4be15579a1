"""``python -m optimas_jax COMMAND``: the command ``optimas``."""

from optimas_jax.command import main

if __name__ == "__main__":
    main()

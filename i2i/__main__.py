"""`python -m stylepairs.i2i ...`, which `accelerate launch -m` and `torchrun -m` start."""

from stylepairs.i2i.cli import main

if __name__ == "__main__":
    main()

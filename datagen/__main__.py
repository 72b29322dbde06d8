"""`python -m stylepairs.datagen ...`, which `accelerate launch -m` and `torchrun -m` start."""

from stylepairs.datagen.cli import main

if __name__ == "__main__":
    main()

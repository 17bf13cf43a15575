"""`python -m qkvit.training.train RECIPE.yaml`, also under torchrun and accelerate launch."""

from ..command import main

if __name__ == "__main__":
    main()

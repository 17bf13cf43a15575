"""What happens to an image: drawn from (seed, epoch, image), applied to a batch."""

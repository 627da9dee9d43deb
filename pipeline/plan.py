"""`make plan`: what training would do and cost, without training."""

from pipeline.application import hydra_application
from training.estimate import show_estimate

main = hydra_application(show_estimate)

if __name__ == "__main__":
    main()

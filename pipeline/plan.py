"""`make plan`: what training would do and cost, without training."""

from pipeline.application import hydra_application
from training.plan import plan

main = hydra_application(plan)

if __name__ == "__main__":
    main()

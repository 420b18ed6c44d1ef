"""What leaves the pipeline: a PEFT adapter, a merged checkpoint, a model card."""

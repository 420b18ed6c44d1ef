"""The pipeline: the table of stages, the stages themselves, and the ways to run one."""

"""The pipeline: the stages, their table, two ways to run one, new workspaces and export."""

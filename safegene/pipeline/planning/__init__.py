"""What a run will do and take, before it begins: stages, prompts, tokens, bytes, memory, time; what a pass needs."""

from safegene.pipeline.planning.plan import PlannedStage, RunPlan, plan_run

__all__ = ["PlannedStage", "RunPlan", "plan_run"]

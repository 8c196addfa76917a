"""From a StepPlan to the tensors of one step."""

"""Config-driven model modules. They see one step's InferenceBatch and the kernels, never the context or scheduler."""

"""Early stopping: rungs (ASHA), median rule, promotions from trunks; Tune's view in token_scheduler.py alone."""

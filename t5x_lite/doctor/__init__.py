"""The environment that a run meets, and whatever is missing for it, before anything is prepared or trained."""

from hypothesis import settings

# A busy machine is slow, not wrong: what is timed is timed by tests that say so.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")

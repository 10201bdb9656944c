"""Settings for all tests: how hypothesis draws its examples."""

from hypothesis import HealthCheck, settings

# The same examples in every run, so that a failure comes from the change; `--hypothesis-profile=random` draws others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("same")

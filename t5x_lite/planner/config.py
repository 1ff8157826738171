"""Settings of the pod that a config is planned for. No JAX here: see `t5x_lite.config`."""

from t5x_lite.schema import Config, Int, setting


class PlanConfig(Config):
    """The pod that `t5x-lite plan` compiles a config for, unless an option names another one."""

    topology: str | None = setting(None, "chips and their shape, such as v5p:8x8x16, as libtpu names them")
    slices: Int = setting(1, "pods of that shape, joined by the data centre's network", ge=1)

"""Print the program of a train step for TPUs or GPUs: `python program_text.py CONFIG TOPOLOGY [key=value …]`."""

import sys

from t5x_lite.parallel.config import gpu_count
from t5x_lite.planner import gpu_compiler, libtpu


def main() -> None:
    """Compile the step of the config that the command line names, and print its text."""
    path, topology, *overrides = sys.argv[1:]
    gpus = gpu_count(topology)
    if gpus is None:
        libtpu.prepare()
    else:
        gpu_compiler.prepare(gpus, can_compile=True)
    import jax

    from t5x_lite import config as configuration
    from t5x_lite.models.spec import model_spec
    from t5x_lite.parallel.mesh import batch_shapes, make_mesh
    from t5x_lite.planner.example import example_features
    from t5x_lite.planner.topology import find_pod
    from t5x_lite.train.steps import make_steps

    config = configuration.load(path, overrides)
    mesh = make_mesh(config.mesh, list(find_pod(topology, 1).devices))
    with jax.set_mesh(mesh), gpu_compiler.assume_cudnn(mesh.devices.flat[0]):
        steps = make_steps(config, model_spec(config.model), mesh)
        shapes = batch_shapes(mesh, example_features(config), config.train.batch_size)
        print(steps.train.lower(steps.state, shapes).compile().as_text())


if __name__ == "__main__":
    main()

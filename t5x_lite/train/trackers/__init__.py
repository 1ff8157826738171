"""Trackers, which show the metrics of runs to people: one file each, one entry here."""

from t5x_lite.train.trackers.mlflow import MLflow
from t5x_lite.train.trackers.tensorboard import TensorBoard
from t5x_lite.train.trackers.tracker import Tracker
from t5x_lite.train.trackers.wandb import WeightsAndBiases

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}

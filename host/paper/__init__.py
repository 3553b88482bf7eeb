"""The paper's experiments and the study of estimators, on top of ladders, selection and heads."""

from entropi.host.paper.experiments import ARCHS, Experiments, run

__all__ = ["ARCHS", "Experiments", "run"]

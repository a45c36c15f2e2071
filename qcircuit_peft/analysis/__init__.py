"""Entanglement and expressibility of circuits and of trained adapters. Reading never changes what is read."""

from qcircuit_peft.analysis.capacity import Capacity, capacity, saturation
from qcircuit_peft.analysis.capture import GradientCapture, best_capture, gradient_capture
from qcircuit_peft.analysis.expressibility import Expressibility, expressibility, frame_potentials
from qcircuit_peft.analysis.fisher import FisherSpectrum, fisher_spectrum
from qcircuit_peft.analysis.fourier import FourierSeries, fourier_series, frequencies
from qcircuit_peft.analysis.gradients import decay, gradient_variance
from qcircuit_peft.analysis.haar import haar_states, haar_value
from qcircuit_peft.analysis.hardware import Perturbed, evaluate_under_noise
from qcircuit_peft.analysis.metrics import METRICS, Metric
from qcircuit_peft.analysis.plateaus import TaskGradientVariance, task_gradient_variance
from qcircuit_peft.analysis.replica import mean_purities
from qcircuit_peft.analysis.report import entanglement_report
from qcircuit_peft.analysis.resources import AdapterResources, Resources, adapter_resources, resources
from qcircuit_peft.analysis.search import Candidate, search
from qcircuit_peft.lie import independent_angles, lie_dimension

__all__ = [
    "METRICS",
    "AdapterResources",
    "Candidate",
    "Capacity",
    "Expressibility",
    "FisherSpectrum",
    "FourierSeries",
    "GradientCapture",
    "Metric",
    "Perturbed",
    "Resources",
    "TaskGradientVariance",
    "adapter_resources",
    "best_capture",
    "capacity",
    "decay",
    "entanglement_report",
    "evaluate_under_noise",
    "expressibility",
    "fisher_spectrum",
    "fourier_series",
    "frame_potentials",
    "frequencies",
    "gradient_capture",
    "gradient_variance",
    "haar_states",
    "haar_value",
    "independent_angles",
    "lie_dimension",
    "mean_purities",
    "resources",
    "saturation",
    "search",
    "task_gradient_variance",
]

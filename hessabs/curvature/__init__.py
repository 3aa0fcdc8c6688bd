"""What is the curvature here? Matrix-vector products and what is computed from them."""

from hessabs.curvature.along import AlongStep, BatchSharpness, batch_sharpness, sharpness_along
from hessabs.curvature.batches import BatchSpectra, DebiasedEigenvalue, batch_spectra, debiased_eigenvalue
from hessabs.curvature.blocks import LayerCurvature, block_params, layer_table, restrict
from hessabs.curvature.dataset import (
    check_deterministic,
    dataset_empirical_fisher,
    dataset_fisher,
    dataset_gauss_newton,
    dataset_hessian,
)
from hessabs.curvature.density import SpectralDensity, evaluate_density, spectral_density
from hessabs.curvature.eigsh import EigshResult, eigsh
from hessabs.curvature.fisher import empirical_fisher, fisher
from hessabs.curvature.gauss_newton import gauss_newton
from hessabs.curvature.gradient_noise import CriticalBatchSize, critical_batch_size
from hessabs.curvature.krylov import KrylovState
from hessabs.curvature.lanczos import LanczosResult, lanczos
from hessabs.curvature.landscape import Landscape, filter_normalized_direction, landscape
from hessabs.curvature.last_layer import last_layer
from hessabs.curvature.layers import Layer, last_layer_path, layers
from hessabs.curvature.linear_cross_entropy import linear_cross_entropy
from hessabs.curvature.operators import hessian, hvp, input_hessian
from hessabs.curvature.power import PowerIterationResult, deflated_power_iteration, power_iteration
from hessabs.curvature.preconditioning import adam_scale, preconditioned
from hessabs.curvature.summary import Summary, summary
from hessabs.curvature.trace import Estimate, diagonal, frobenius_norm, trace

__all__ = [
    "AlongStep",
    "BatchSharpness",
    "BatchSpectra",
    "CriticalBatchSize",
    "DebiasedEigenvalue",
    "EigshResult",
    "Estimate",
    "KrylovState",
    "LanczosResult",
    "Landscape",
    "Layer",
    "LayerCurvature",
    "PowerIterationResult",
    "SpectralDensity",
    "Summary",
    "adam_scale",
    "batch_sharpness",
    "batch_spectra",
    "block_params",
    "check_deterministic",
    "critical_batch_size",
    "dataset_empirical_fisher",
    "dataset_fisher",
    "dataset_gauss_newton",
    "dataset_hessian",
    "debiased_eigenvalue",
    "deflated_power_iteration",
    "diagonal",
    "eigsh",
    "empirical_fisher",
    "evaluate_density",
    "filter_normalized_direction",
    "fisher",
    "frobenius_norm",
    "gauss_newton",
    "hessian",
    "hvp",
    "input_hessian",
    "lanczos",
    "landscape",
    "last_layer",
    "last_layer_path",
    "layer_table",
    "layers",
    "linear_cross_entropy",
    "power_iteration",
    "preconditioned",
    "restrict",
    "sharpness_along",
    "spectral_density",
    "summary",
    "trace",
]

"""Instance-wise LoRA for PyTorch: one low-rank product with a per-instance diagonal in the middle.

y[t] = x[t] Wᵀ + bias + s · Σ_k gate[b(t), k] · (x[t] A_kᵀ) B_kᵀ
"""

from ilora_kernels.backends import backends, use_backend
from ilora_kernels.functional import gated_lora, gated_lora_linear
from ilora_kernels.gates import InstanceGates
from ilora_kernels.layers import FusedILoRALinear

__all__ = [
    "FusedILoRALinear",
    "InstanceGates",
    "backends",
    "gated_lora",
    "gated_lora_linear",
    "use_backend",
]

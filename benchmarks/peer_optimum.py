"""Peer optimum: whether optimum-onnx can export the step at all, asked of the library itself.

NOTE: its dependencies do not go with ours, so this runs in an environment of its own (the extra
``optimum``) and imports nothing of this project that needs more than NumPy.
"""

from types import SimpleNamespace

from jscc.benchmarks.peer_diffusers import unet_config

NEEDS = ("optimum",)
_KINDS = {"control": "controlnet", "unet": "unet-2d-condition"}  # as optimum calls the networks
_TASK = "semantic-segmentation"  # and what a denoiser does


def ask(scale: str) -> dict[str, str]:
    """Why optimum-onnx cannot export control module and UNet; empty where it can."""
    import optimum.exporters.onnx.model_configs  # it registers what it can export
    from optimum.exporters.tasks import TasksManager

    del optimum
    lacks = []
    makers = {}
    for part, kind in _KINDS.items():
        try:
            makers[part] = TasksManager.get_exporter_config_constructor(
                "onnx", library_name="diffusers", task=_TASK, model_type=kind
            )
        except (KeyError, ValueError) as error:
            lacks.append(str(error.args[0]).partition(". ")[0])
    if "unet" in makers:
        settings = SimpleNamespace(**unet_config(scale), time_cond_proj_dim=None)
        inputs = list(makers["unet"](settings).inputs)
        if not any("residual" in name for name in inputs):
            lacks.append(f"the graph of its UNet reads {', '.join(inputs)} and no residuals")
    return {"reason": "; ".join(lacks)}

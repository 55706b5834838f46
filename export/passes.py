"""Passes: what makes a freshly translated graph smaller before it is stored.

NOTE: These are onnxscript's own, in the order in which ``torch.onnx.export(optimize=True)`` runs
them, without two kinds of rules. ``slice_split_rule``, the only one that looks for two operations
at once, walks the whole graph for each node of it: half of an export's time, for a pattern that no
network here has. And those for quantised operations: graphs are quantised later, in
`jscc.calibration`.
"""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    add_0_rule,
    cast_cast_rule,
    cast_constant_of_shape_rule,
    cast_constant_of_shape_without_value_rule,
    collapse_slice2_rule,
    collapse_slice_rule,
    div_by_1_rule,
    dropout_inference_rule,
    dropout_zero_rule,
    flatten_to_reshape_rule,
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
    fuse_pad_into_conv_rule,
    materialize_reshape_shape_rule,
    max_max_rule,
    max_min_rule,
    min_max_rule,
    min_min_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_dynamic_scatter_nd_rule,
    no_op_expand_rule,
    no_op_static_scatter_nd_rule,
    no_op_transpose_rule,
    normalize_pad_format_conv_rule,
    one_reshape_matmul_reshape_rule,
    remove_optional_bias_from_conv_rule,
    remove_optional_bias_from_conv_transpose_rule,
    remove_optional_bias_from_gemm_rule,
    reshape_reshape_rule,
    squeeze_reshape_1d_rule,
    sub_0_rule,
    successive_clip_relu_rule,
    successive_clip_rule,
    successive_relu_clip_rule,
    successive_relu_rule,
    transpose_transpose_rule,
    two_reshapes_matmul_reshape_rule,
    unsqueeze_unsqueeze_rule,
)

ROUNDS = 2
# Of a node the first rule that fits is applied.
RULES = (
    *RewriteRuleSet((mul_by_1_rule, add_0_rule), commute=True).rules,
    sub_0_rule,
    div_by_1_rule,
    dropout_zero_rule,
    dropout_inference_rule,
    two_reshapes_matmul_reshape_rule,
    one_reshape_matmul_reshape_rule,
    cast_constant_of_shape_rule,
    cast_constant_of_shape_without_value_rule,
    collapse_slice_rule,
    collapse_slice2_rule,
    materialize_reshape_shape_rule,
    min_min_rule,
    max_max_rule,
    min_max_rule,
    max_min_rule,
    successive_clip_relu_rule,
    successive_relu_clip_rule,
    successive_relu_rule,
    successive_clip_rule,
    cast_cast_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    flatten_to_reshape_rule,
    reshape_reshape_rule,
    no_op_transpose_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
    squeeze_reshape_1d_rule,
    no_op_dynamic_scatter_nd_rule,
    no_op_static_scatter_nd_rule,
    normalize_pad_format_conv_rule,
    fuse_pad_into_conv_rule,
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
    remove_optional_bias_from_conv_rule,
    remove_optional_bias_from_conv_transpose_rule,
    remove_optional_bias_from_gemm_rule,
)


def shrink(model: ir.Model) -> None:
    """Fold constants, rewrite what `RULES` know, and drop what is then there twice or unused."""
    common.InlinePass()(model)
    for _ in range(ROUNDS):
        folded = fold_constants_ir(model, onnx_shape_inference=True)
        rewritten = RewritePass(RULES)(model)
        common.RemoveUnusedNodesPass()(model)
        if not (folded.modified or rewritten.modified):
            break
    ir.passes.Sequential(
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)

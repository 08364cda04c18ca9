"""From the text of a kernel to TVM's IR.

TVM's own parser evaluates each node of each expression by itself: a fifth of a second for a usual
kernel, as long as all that LLVM does with it. Here Python compiles the text as a whole, its
statements turned into calls of the builder that TVM's parser calls: six times as fast, with the
same result.
"""

from __future__ import annotations

import ast
from typing import Any

from tvm import IRModule, ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # its name in the texts


def parse(text: str, *, aligns_stack: bool = False) -> Any:
    """Return the `tirx.PrimFunc` of a kernel.

    Args:
        text: A function whose arguments are `T.handle`, in the part of TVMScript that
            `_Statements` knows.
        aligns_stack: Whether LLVM is to align the stack to the vectors that registers have no
            room for, which x86's rules of calling do not.

    Raises:
        SyntaxError: If it is no Python, or has a statement that is not known here.
        Exception: What TVM raises on values that do not fit, such as vectors of unlike lengths.
    """
    tree = _Statements(aligns_stack).visit(ast.parse(text, "<kernel>"))
    scope = {"T": T, "_tirx": tirx, "_named": _named, "_let": _let}
    scope |= {"_compared": _compared, "_evaluate": _evaluate, "_use_frame": _use_frame}
    exec(compile(ast.fix_missing_locations(tree), "<kernel>", "exec"), scope)  # text of our own
    (definition,) = tree.body
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(definition.name)
            scope[definition.name](*(T.arg(a.arg, T.handle()) for a in definition.args.args))
        function = builder.get()
    s_tir.analysis.verify_well_formed(IRModule({definition.name: function}))
    return function


class _Statements(ast.NodeTransformer):
    """Turns the statements of TVMScript into calls of the builder.

    A name is Python's here: it stays known behind the loop that defines it. Whoever uses it there
    gets a function that is not well-formed.
    """

    def __init__(self, aligns_stack: bool) -> None:
        self._stack_use = [ast.Expr(_call("_use_frame"))] if aligns_stack else []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        for argument in node.args.args:
            argument.annotation = None
        self.generic_visit(node)
        node.body += self._stack_use
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        loop, name = node.iter, node.target
        if not (isinstance(loop, ast.Call) and isinstance(name, ast.Name)):
            raise _unknown(node)
        if isinstance(loop.func, ast.Name) and loop.func.id == "range":
            loop = _call("T.serial", ast.Constant(0), *loop.args)
        named = ast.Expr(_call("_named", ast.Constant(name.id), ast.Name(name.id, ast.Load())))
        is_function = ast.unparse(loop.func) == "T.parallel"  # TVM makes its body one
        uses = self._stack_use if is_function else []
        return ast.With([ast.withitem(loop, name)], [named, *node.body, *uses])

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        branches: list[ast.stmt] = [_within("T.Then", node.body)]
        branches += [_within("T.Else", node.orelse)] if node.orelse else []
        return _within("T.If", branches, node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        name, value = node.target, node.value
        if not isinstance(name, ast.Name) or value is None:
            raise _unknown(node)
        return ast.Assign([name], _call("_let", ast.Constant(name.id), node.annotation, value))

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        match node.targets:
            case [ast.Name(name) as target]:
                return ast.Assign([target], _call("_named", ast.Constant(name), node.value))
            case [ast.Subscript(buffer, index)]:
                places = index.elts if isinstance(index, ast.Tuple) else [index]
                where = ast.List(list(places), ast.Load())
                return ast.Expr(_call("T.buffer_store", buffer, node.value, where))
        raise _unknown(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        return ast.Expr(_call("_evaluate", node.value))

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        joined, *others = node.values
        for other in others:
            joined = _call(f"_tirx.{type(node.op).__name__}", joined, other)
        return joined

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        how = _COMPARED.get(type(node.ops[0]))
        if how is None or len(node.ops) > 1:
            raise _unknown(node)
        return _call("_compared", ast.Constant(how), node.left, *node.comparators)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, _UNKNOWN):
            raise _unknown(node)
        return super().generic_visit(node)


# What Python would compute by itself, once, where a kernel means it for each run.
_UNKNOWN = (ast.AugAssign, ast.While, ast.IfExp, ast.Not, ast.Assert, ast.Return)
_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Eq: "EQ",
    ast.NotEq: "NE",
    ast.Lt: "LT",
    ast.LtE: "LE",
    ast.Gt: "GT",
    ast.GtE: "GE",
}


def _unknown(node: ast.AST) -> SyntaxError:
    text = "not" if isinstance(node, ast.Not) else ast.unparse(node)
    return SyntaxError(f"A kernel must not have `{text}`.")


def _call(function: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.parse(function, mode="eval").body, list(arguments), [])


def _within(frame: str, body: list[ast.stmt], *arguments: ast.expr) -> ast.With:
    return ast.With([ast.withitem(_call(frame, *arguments))], body)


def _named(name: str, value: Any) -> Any:
    """Name a variable or buffer."""
    IRBuilder.name(name, value)
    return value


def _let(name: str, annotation: Any, value: Any) -> Any:
    variable = _named(name, annotation.as_var())
    T.Bind(value if isinstance(value, ir.Expr) else tirx.const(value), var=variable)
    return variable


def _compared(how: str, left: Any, right: Any) -> Any:
    """Return a comparison in the order of the text; Python would turn `0 < x` into `x > 0`."""
    left, right = (
        tirx.const(value, other.ty.dtype) if isinstance(value, int) else value
        for value, other in ((left, right), (right, left))
    )
    return getattr(tirx, how)(left, right)


def _evaluate(value: Any) -> None:
    if value is not None:
        T.evaluate(value)


def _use_frame() -> None:
    """Let LLVM keep a pointer to the frame of the function, without which it aligns no stack.

    It only decides that vectors are kept on the stack when it is too late to take one. Vectors
    then lie across cache lines, and where the random beginning of the stack has it so, across
    pages: a layer took three times as long in one process of ten, a MobileNetV2 17 % longer.
    """
    frame = T.call_llvm_intrin("handle", "llvm.frameaddress", 0)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", frame, 0, 3, 1))

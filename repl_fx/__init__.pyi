# The public names, and where they are; the package imports each when it is first asked for.

from . import (
    arguments as arguments,
    artifact as artifact,
    benchmarking as benchmarking,
    cli as cli,
    config as config,
    costs as costs,
    display as display,
    environment as environment,
    errors as errors,
    export as export,
    finding as finding,
    fitting as fitting,
    graph as graph,
    passes as passes,
    pipeline as pipeline,
    plan as plan,
    planning as planning,
    reporting as reporting,
    rewriting as rewriting,
    running as running,
    sources as sources,
    surrogates as surrogates,
    tracing as tracing,
    training as training,
)
from .artifact import (
    load as load,
    save as save,
    save_pretrained as save_pretrained,
)
from .benchmarking.benchmark import (
    bench as bench,
)
from .benchmarking.results import (
    Benchmark as Benchmark,
)
from .errors import (
    ArtifactError as ArtifactError,
    BadInput as BadInput,
    CaptureError as CaptureError,
    ExportError as ExportError,
    NotFoldable as NotFoldable,
    NothingToReplace as NothingToReplace,
    OutputError as OutputError,
    PlanMismatch as PlanMismatch,
    ReplFxError as ReplFxError,
    SourceError as SourceError,
    UnknownBlock as UnknownBlock,
    UnknownSurrogate as UnknownSurrogate,
    WeightsChanged as WeightsChanged,
)
from .export import (
    CachedDecoder as CachedDecoder,
    export_onnx as export_onnx,
    verify_onnx as verify_onnx,
)
from .finding.blocks import (
    Block as Block,
    Repeat as Repeat,
)
from .finding.find_repeats import (
    find_repeats as find_repeats,
)
from .finding.own_repeats import (
    repeat_of as repeat_of,
)
from .fitting.compression import (
    Compression as Compression,
    compress as compress,
)
from .fitting.fit import (
    fit as fit,
)
from .fitting.fitted import (
    Fit as Fit,
    FittedSurrogate as FittedSurrogate,
)
from .pipeline import (
    transform as transform,
)
from .plan import (
    Plan as Plan,
    Refusal as Refusal,
)
from .planning.make_plan import (
    make_plan as make_plan,
)
from .planning.policies import (
    known_surrogates as known_surrogates,
)
from .planning.scoring.score_blocks import (
    score_blocks as score_blocks,
)
from .planning.scoring.scores import (
    BlockScore as BlockScore,
    Scores as Scores,
    StretchScore as StretchScore,
)
from .reporting.report import (
    Report as Report,
    report as report,
)
from .rewriting.folding import (
    fold as fold,
)
from .rewriting.result import (
    TransformResult as TransformResult,
)
from .sources.checkpoints.source_state import (
    LoadedState as LoadedState,
    load_source_state as load_source_state,
)
from .surrogates import (
    Builder as Builder,
    Match as Match,
    Site as Site,
    Surrogate as Surrogate,
    Synthesis as Synthesis,
    Traits as Traits,
    register_surrogate as register_surrogate,
    shared_synthesis as shared_synthesis,
)
from .tracing.capture import (
    capture as capture,
    check_capture as check_capture,
)
from .tracing.parts.capture_parts import (
    CapturedParts as CapturedParts,
    capture_parts as capture_parts,
)
from .training.healing import (
    heal as heal,
)
from .training.train import (
    train as train,
)

__version__: str

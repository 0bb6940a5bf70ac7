# The public names, and where they are; the package imports each when it is first asked for.

from . import (
    analysis as analysis,
    arguments as arguments,
    artifact as artifact,
    benchmarking as benchmarking,
    checkpoints as checkpoints,
    cli as cli,
    compression as compression,
    config as config,
    costs as costs,
    display as display,
    environment as environment,
    errors as errors,
    export as export,
    fitting as fitting,
    graph as graph,
    in_place as in_place,
    passes as passes,
    pipeline as pipeline,
    plan as plan,
    planning as planning,
    report as report,
    running as running,
    scoring as scoring,
    sources as sources,
    surrogates as surrogates,
    tracing as tracing,
    training as training,
)
from .analysis.blocks import (
    Block as Block,
    Repeat as Repeat,
)
from .artifact import (
    load as load,
    save as save,
    save_pretrained as save_pretrained,
)
from .checkpoints.source_state import (
    LoadedState as LoadedState,
    load_source_state as load_source_state,
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
from .fitting.fit import (
    fit as fit,
)
from .fitting.results import (
    Fit as Fit,
    FittedSurrogate as FittedSurrogate,
)
from .passes.find_repeats import (
    find_repeats as find_repeats,
)
from .passes.own_repeats import (
    repeat_of as repeat_of,
)
from .pipeline import (
    TransformResult as TransformResult,
    fold as fold,
    make_plan as make_plan,
    transform as transform,
)
from .plan import (
    Plan as Plan,
    Refusal as Refusal,
)
from .scoring.score_blocks import (
    score_blocks as score_blocks,
)
from .scoring.scores import (
    BlockScore as BlockScore,
    Scores as Scores,
    StretchScore as StretchScore,
)
from .surrogates import (
    Builder as Builder,
    Match as Match,
    Site as Site,
    Surrogate as Surrogate,
    Synthesis as Synthesis,
    known_surrogates as known_surrogates,
    register_surrogate as register_surrogate,
    shared_synthesis as shared_synthesis,
)
from .tracing.capture import (
    capture as capture,
    check_capture as check_capture,
)
from .tracing.parts.capture import (
    CapturedParts as CapturedParts,
    capture_parts as capture_parts,
)

__version__: str

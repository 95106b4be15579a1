"""A scripted run with every tracker, in a process of its own that may be killed:

    python tracked_program.py FOLDER [SECONDS]

``FOLDER/run`` is the run, ``FOLDER/mlflow.db`` and ``FOLDER/spans.jsonl`` what MLflow and OpenTelemetry were given; an
answer takes SECONDS.
"""

import json
import os
import sys
import time
from pathlib import Path

from fakes import ScriptedCompleter
from scripted import answer, scripted_config

import optimas_jax as oj
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress


def main(folder, seconds=0.0):
    import mlflow
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    os.environ["WANDB_MODE"] = "offline"
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    provider = TracerProvider()
    with (folder / "spans.jsonl").open("a") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: json.dumps(json.loads(span.to_json())) + "\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trackers = [oj.tracker(name) for name in ("tensorboard", "wandb", "mlflow")]
        trackers.append(oj.tracker("otel", provider=provider, content=True))

        def slow(request):
            time.sleep(seconds)
            return answer(request)

        progress = ConsoleProgress(quiet=True)
        run_stages(scripted_config(), folder / "run", "all", progress, ScriptedCompleter(slow), callbacks=trackers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:]))

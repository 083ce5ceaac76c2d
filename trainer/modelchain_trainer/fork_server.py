"""`python -m modelchain_trainer.fork_server`: launchers and ranks as forks of a process that has imported torch.

`modelchain run` starts one for all stages of a chain (modelchain.forking).
"""

import os

from modelchain.forking import serve
from modelchain_trainer.distributed.launcher import RANK_ENVIRONMENT, main
from modelchain_trainer.distributed.supervision import fork_rank


def _serve() -> None:
    for name, value in RANK_ENVIRONMENT.items():  # which libraries read as they are loaded
        os.environ.setdefault(name, value)
    # What every stage imports sooner or later; no thread of torch exists before a fork.
    import PIL.Image
    import tensorboard.compat.proto.event_pb2
    import tensorboard.compat.proto.summary_pb2  # noqa: F401

    import modelchain_trainer.training  # noqa: F401

    PIL.Image.preinit()
    serve(lambda: main([], start_rank=fork_rank))


if __name__ == "__main__":
    _serve()

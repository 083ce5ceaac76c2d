from pathlib import Path

import pytest

from modelchain_trainer import environment
from modelchain_trainer.environment import JobEnvironment, ProcessEnvironment, UsageError, available_cores


def test_one_process_where_nothing_is_said() -> None:
    job = JobEnvironment.read({})
    assert (job.nodes, job.node_rank, job.processes_per_node, job.world_size) == (1, 0, 1, 1)
    assert job.master_address == "127.0.0.1"


def test_a_pytorchjob_names_nodes_and_the_rank_of_this_one() -> None:
    job = JobEnvironment.read(
        {
            "PET_NNODES": "3",
            "PET_NODE_RANK": "2",
            "PET_NPROC_PER_NODE": "8",
            "PET_MASTER_ADDR": "chain-master-0",
            "PET_MASTER_PORT": "23456",
            "WORLD_SIZE": "24",
            "RANK": "2",
        }
    )
    assert job == JobEnvironment(3, 2, 8, "chain-master-0", 23456)
    assert job.rank_variables(5)["RANK"] == "21"


def test_without_pet_variables_the_nodes_follow_from_the_world_size() -> None:
    job = JobEnvironment.read({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "29500"})
    assert (job.nodes, job.node_rank, job.processes_per_node, job.master_port) == (2, 1, 1, 29500)


def test_an_indexed_job_counts_pods_by_completion_index() -> None:
    variables = {"PET_NNODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "head"}
    assert JobEnvironment.read(variables).node_rank == 1


@pytest.mark.parametrize("word", ["auto", "gpu", "cpu"])
def test_a_number_of_processes_left_to_the_machine_is_that_of_the_stage(word: str) -> None:
    assert JobEnvironment.read({"PET_NPROC_PER_NODE": word}, declared_processes=4).processes_per_node == 4


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES='two' must be a whole number of at least 1"),
        ({"PET_NNODES": "1:4"}, "PET_NNODES='1:4'"),
        ({"PET_NPROC_PER_NODE": "0"}, "PET_NPROC_PER_NODE='0'"),
        ({"PET_NNODES": "2", "MASTER_ADDR": "head", "PET_NODE_RANK": "2"}, "ranks begin at 0"),
        ({"PET_NNODES": "2"}, "no MASTER_ADDR"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"PET_NPROC_PER_NODE": "2", "WORLD_SIZE": "3"}, "WORLD_SIZE=3"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("'", ".")):
        JobEnvironment.read(variables)


def test_two_launches_on_one_machine_get_different_ports() -> None:
    first, second = JobEnvironment.read({}), JobEnvironment.read({})
    assert first.master_port != second.master_port


def test_a_rank_reads_what_the_launcher_wrote(tmp_path: Path) -> None:
    job = JobEnvironment(nodes=2, node_rank=1, processes_per_node=4, master_address="head", master_port=29500)
    process = ProcessEnvironment.read({**job.rank_variables(3), environment.SCRATCH_VARIABLE: str(tmp_path)})
    assert (process.rank, process.local_rank, process.world_size, process.local_world_size) == (7, 3, 8, 4)
    assert (process.master_address, process.master_port) == ("head", 29500)
    assert process.token is None


def test_a_rank_without_launcher_says_how_to_start_it() -> None:
    with pytest.raises(UsageError, match="python -m modelchain_trainer"):
        ProcessEnvironment.read({})


def test_a_cpu_limit_counts_as_cores() -> None:
    assert 1 <= available_cores() <= 4096

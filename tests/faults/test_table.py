"""Every fault that must be survived: how it is caused, what is promised, where it is tested.

All are caused by real signals, full disks, changed bytes, hostile files. `python -m tests.faults`
runs them all and counts.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]


class Row(NamedTuple):
    """A fault."""

    fault: str
    cause: str
    promise: str
    tests: tuple[str, ...]


TABLE = (
    Row(
        "killed in a step", "SIGKILL at random steps",
        "the same command goes on; batches and losses are bit-identical",
        ("checkpoint/test_resume.py::test_sigkill_at_random_steps_changes_nothing",),
    ),
    Row(
        "killed in a save", "SIGKILL while saving-STEP is there",
        "the unfinished step is not used; bit-identical",
        (
            "faults/test_killed_training.py::test_in_the_middle_of_a_save",
            "faults/test_damaged_checkpoints.py::"
            "test_what_a_save_left_unfinished_is_never_chosen",
        ),
    ),
    Row(
        "killed between a save and its evaluation", "SIGKILL",
        "metrics, evaluations and best/ are as if nothing had been: none lost, none twice",
        (
            "faults/test_killed_training.py::test_between_a_save_and_its_evaluation",
            "train/test_evaluation.py::test_a_kill_loses_and_doubles_no_evaluation",
        ),
    ),
    Row(
        "preempted", "SIGTERM to one of one or two processes",
        "all save the same step, exit 143, go on from there",
        (
            "checkpoint/test_resume.py::test_sigterm_saves_the_step_and_says_so",
            "devices/test_processes.py::"
            "test_two_processes_train_stop_together_and_go_on_as_one",
        ),
    ),
    Row(
        "Ctrl-C", "SIGINT", "the step is saved, exit 130, and it is said how to go on",
        ("faults/test_stops.py::test_ctrl_c_saves_and_says_how_to_go_on",),
    ),
    Row(
        "disk full while saving", "a small tmpfs; RLIMIT_FSIZE",
        "an alarm at once, tried again, exit 4 if it stays; the last good step is whole",
        (
            "faults/test_full_disk.py::test_room_that_comes_back_in_time",
            "faults/test_full_disk.py::test_room_that_does_not_come_back",
            "faults/test_full_disk.py::test_files_that_may_not_grow",
        ),
    ),
    Row(
        "disk full where the log lies", "a small tmpfs",
        "what is said is lost, and nothing else: the run goes on",
        ("faults/test_full_disk.py::test_a_log_that_finds_no_room_ends_no_run",),
    ),
    Row(
        "no right to write", "chmod, a disk mounted read only; before the start and while training",
        "one line at once with the option that helps, exit 2; evaluate shows its scores; a save "
        "that is denied: exit 4",
        (
            "faults/test_no_rights.py::test_what_must_write_says_so_in_one_line",
            "faults/test_no_rights.py::test_what_only_reads_it_works",
            "faults/test_no_rights.py::test_a_run_on_data_that_may_only_be_read_starts_again",
            "faults/test_no_rights.py::test_a_right_that_is_lost_while_training_ends_the_run",
        ),
    ),
    Row(
        "checkpoint damaged", "a bit flipped, a file cut or removed, in every file of a step",
        "found by its seal, set aside, the newest good step used, and said so",
        (
            "faults/test_damaged_checkpoints.py::test_harm_to_any_file_of_a_step_is_found",
            "faults/test_damaged_checkpoints.py::"
            "test_training_sets_damaged_steps_aside_and_goes_on_from_the_newest_good_one",
            "faults/test_damaged_checkpoints.py::"
            "test_readers_use_the_newest_good_step_and_change_nothing",
            "faults/test_hosts.py::test_all_hosts_set_a_damaged_step_aside",
        ),
    ),
    Row(
        "checkpoint of other shapes or dtypes", "bfloat16 wanted of float32",
        "refused with the names; never cast",
        ("faults/test_damaged_checkpoints.py::test_other_shapes_and_dtypes_are_refused",),
    ),
    Row(
        "data worker killed", "SIGKILL to a worker",
        "exit 10 with the cause; the next start has exactly the batches that follow",
        (
            "faults/test_data_workers.py::"
            "test_a_killed_worker_ends_the_run_and_the_next_has_the_same_batches",
        ),
    ),
    Row(
        "data worker hangs", "SIGSTOP to a worker",
        "exit 10 after faults.batch_timeout_s, with the stacks of all threads",
        (
            "faults/test_data_workers.py::"
            "test_a_stopped_worker_ends_the_run_in_time_with_all_stacks",
        ),
    ),
    Row(
        "trainer killed", "SIGKILL, also while a worker is stopped",
        "no process and no shared memory is left",
        (
            "faults/test_data_workers.py::test_a_killed_trainer_leaves_no_process_and_no_memory",
            "faults/test_data_workers.py::"
            "test_a_worker_that_is_stopped_dies_with_a_killed_trainer",
        ),
    ),
    Row(
        "a host dies", "SIGKILL to one of two processes",
        "the other ends with exit 12 (JAX: 134 for the first) and names it; restart goes on",
        (
            "faults/test_hosts.py::test_the_second_host_dies",
            "faults/test_hosts.py::test_the_first_host_dies",
        ),
    ),
    Row(
        "a host hangs", "SIGSTOP to either of two processes",
        "the other ends with exit 12 after faults.heartbeat_s and names it",
        ("faults/test_hosts.py::test_a_host_hangs",),
    ),
    Row(
        "a step stalls", "a process that a step waits for is stopped, and no heartbeat ends it",
        "exit 11 after faults.step_timeout_s, with the stacks of all threads",
        ("faults/test_hosts.py::test_a_step_that_stalls_ends_in_time",),
    ),
    Row(
        "a host compiles for long", "one of two processes is stopped while it compiles",
        "the other waits, as for a compilation and not as for a step",
        ("faults/test_hosts.py::test_a_step_does_not_wait_for_another_hosts_compilation",),
    ),
    Row(
        "a second trainer in the run folder", "the same command again; another host's lease",
        "refused, with who trains there; after kill -9 the same host goes on at once",
        (
            "train/watch/test_lease.py::test_two_trainers_of_one_folder",
            "train/watch/test_lease.py::test_another_host_that_gives_signs_of_life_keeps_it",
            "train/watch/test_lease.py::test_one_that_was_silent_for_too_long_gives_way",
        ),
    ),
    Row(
        "only one host starts", "one of two processes",
        "exit 2 after distributed.timeout_s, with what to check",
        ("devices/test_processes.py::test_a_process_that_is_alone_says_so_in_time",),
    ),
    Row(
        "hosts, devices or workers change", "8, 4, 2, 1 devices; 2, 1 processes; 2, 0 workers",
        "the same batches, losses within rounding",
        (
            "devices/test_processes.py::"
            "test_a_checkpoint_of_eight_devices_goes_on_with_four_two_and_one",
            "devices/test_processes.py::"
            "test_two_processes_train_stop_together_and_go_on_as_one",
            "faults/test_data_workers.py::"
            "test_a_killed_worker_ends_the_run_and_the_next_has_the_same_batches",
        ),
    ),
    Row(
        "configuration changes", "other flags on resumption, or on one of two hosts",
        "refused with each field, before and now",
        (
            "checkpoint/test_resume.py::test_another_configuration_is_refused_on_resumption",
            "devices/test_processes.py::test_processes_with_another_configuration_are_named",
        ),
    ),
    Row(
        "NaN or infinity", "an infinite score in a shard; a learning rate out of all bounds",
        "the step changes nothing, is counted, its records are written; N in a row: exit 3",
        (
            "faults/test_not_finite.py::test_a_skipped_step_changes_the_step_number_alone",
            "faults/test_not_finite.py::test_a_poisoned_record_is_named_and_the_run_goes_on",
            "faults/test_not_finite.py::"
            "test_too_many_in_a_row_end_the_run_with_finite_parameters",
        ),
    ),
    Row(
        "step does not fit the memory", "4,096 rows of 2,048 tokens",
        "exit 5 before the first step, with remedies",
        ("faults/test_memory.py::test_a_step_that_does_not_fit_is_refused_with_remedies",),
    ),
    Row(
        "shard damaged", "bytes flipped, cut, added or exchanged, at the start and while training",
        "found at the start or when the record is read, named, never trained on",
        (
            "shards/test_verify.py::test_a_shard_cut_grown_gone_or_another_is_found_at_the_start",
            "shards/test_verify.py::test_a_bit_in_the_middle_is_found_by_hashing_all",
            "shards/test_verify.py::test_no_damage_to_a_shard_ever_changes_a_record",
            "shards/test_verify.py::test_the_damaged_record_is_named",
            "shards/test_verify.py::test_training_never_sees_a_damaged_shard",
        ),
    ),
    Row(
        "bad lines of a source", "bad UTF-8, cut gzip, no JSON, wrong schema, endless lines",
        "counted with file and line, passed over in bounded memory",
        (
            "sources/test_sources.py::"
            "test_every_kind_of_bad_line_is_reported_with_its_number_and_passed_over",
            "sources/test_sources.py::test_a_missing_field_is_named_with_those_there",
            "sources/test_sources.py::test_a_line_without_end_is_not_held",
        ),
    ),
    Row(
        "files that are traps", "bombs in gzip, zstd and Parquet, links out of a folder, pipes",
        "refused by name in bounded memory",
        (
            "sources/test_bombs.py::test_a_line_of_768_mib_in_a_small_file",
            "sources/test_bombs.py::test_a_table_with_cells_that_are_each_short_enough",
            "sources/test_bombs.py::test_a_column_that_names_one_long_text_in_every_row",
            "sources/test_bombs.py::test_an_empty_file_is_named",
            "sources/test_bombs.py::test_links_of_a_glob_may_not_lead_out_of_its_folder",
            "sources/test_bombs.py::test_a_pipe_is_no_file",
        ),
    ),
    Row(
        "a machine of a run in a bucket", "SIGKILL, another machine, other processes, two at once",
        "another goes on with the same parameters; one trains, the other is refused",
        (
            "faults/test_run_at_url.py::"
            "test_killed_here_it_goes_on_elsewhere_with_the_same_parameters",
            "faults/test_run_at_url.py::test_processes_save_and_any_number_goes_on",
            "faults/test_run_at_url.py::test_two_trainers_do_not_share_it",
            "faults/test_run_at_url.py::test_verbs_read_it_and_put_what_they_make",
        ),
    ),
    Row(
        "damaged step in a bucket", "changed, cut, removed and unsealed objects",
        "set aside by name; the step before is used",
        (
            "faults/test_run_at_url.py::test_a_damaged_newest_step_is_left_for_the_one_before",
            "checkpoint/test_stored.py::test_a_damaged_step_is_set_aside_for_the_one_before",
            "checkpoint/test_stored.py::test_a_step_without_its_seal_is_none_and_goes",
        ),
    ),
    Row(
        "damaged shard in a bucket", "changed, swapped and cut objects, a store that goes away",
        "named, and nothing of it used; the store is waited for",
        (
            "shards/test_bucket.py::test_a_damaged_record_is_named_and_not_used",
            "shards/test_bucket.py::test_another_shard_of_the_same_size_is_told",
            "shards/test_bucket.py::test_what_a_bucket_does_in_the_middle",
            "shards/test_remote_prepared.py::"
            "test_training_from_a_bucket_whose_server_stops_and_comes_back",
        ),
    ),
    Row(
        "hostile model", "pickles, code, auto_map, unknown modules, paths out, shapes, huge JSON",
        "refused by name before any of it is loaded; nothing is executed",
        (
            "inference/test_hostile_models.py::test_a_hostile_folder_is_refused_by_name",
            "inference/test_hostile_models.py::test_the_import_refuses_it_too_and_leaves_nothing",
            "inference/test_hostile_models.py::test_every_verb_says_so_in_one_line_and_exits_with_2",
            "inference/test_hostile_models.py::test_pickles_and_code_beside_safetensors_are_left_alone",
        ),
    ),
    Row(
        "hostile run folder", "a config.json of others: paths, types, sizes, infinities",
        "refused by every verb with the field",
        (
            "checkpoint/test_hostile_runs.py::test_a_run_whose_configuration_is_hostile_is_refused",
            "checkpoint/test_hostile_runs.py::test_every_verb_that_reads_it_exits_with_2",
        ),
    ),
    Row(
        "credentials", "in flags, configurations, addresses and the environment",
        "refused, or masked in all that is printed and written",
        (
            "system/test_credentials.py::"
            "test_a_credential_in_a_configuration_is_refused_and_not_repeated",
            "system/test_credentials.py::test_no_verb_repeats_one_that_it_was_given",
            "system/test_credentials.py::test_a_run_from_end_to_end_writes_and_prints_none",
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.fault)
def test_every_row_has_its_tests(row):
    for name in row.tests:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


def test_every_test_of_a_fault_has_a_row():
    named = {name for row in TABLE for name in row.tests}
    beside = {"test_time_is_told_over_all_lives", "test_readers_say_so_when_no_step_is_good"}
    for path in (TESTS / "faults").glob("test_*.py"):
        if path.name != Path(__file__).name:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    assert f"faults/{path.name}::{node.name}" in named or node.name in beside

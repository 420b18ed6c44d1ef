"""The twenty-five kinds of bad input that must never get anything promoted, each with the tests that hold it.

A kind is refused by a clear error with a nonzero exit; nothing goes live, and the refusal is on record.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
KINDS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "pickled weights, alone or beside safetensors: never opened",
        ("hostile/test_checkpoints.py::test_a_pickle_is_never_opened",)
        + ("hostile/test_checkpoints.py::test_pickles_beside_the_weights_are_ignored_and_never_opened",)
        + ("hostile/test_adapters.py::test_an_adapter_that_is_a_pickle",),
    ),
    2: (
        "a safetensors header that is huge or no JSON: refused before memory is allocated",
        ("hostile/test_checkpoint_headers.py::test_a_bad_header",)
        + ("hostile/test_checkpoint_headers.py::test_a_long_header_is_refused_before_it_is_read",),
    ),
    3: (
        "a key twice in a header",
        ("hostile/test_checkpoint_headers.py::test_a_duplicate_among_very_many_keys_is_found_quickly",),
    ),
    4: ("an index that names a missing, extra or outside shard", ("hostile/test_checkpoints.py::test_a_bad_index",)),
    5: (
        "a tensor name that is a path, markup or a terminal sequence",
        ("hostile/test_checkpoint_headers.py::test_a_name_that_is_a_path_markup_or_a_terminal_sequence",),
    ),
    6: (
        "NaN, infinity or an absurd number: the tensor is named",
        ("hostile/test_checkpoints.py::test_a_number_that_no_weight_has",)
        + ("checkpoints/test_checkpoint.py::test_a_number_that_no_weight_has_is_named_by_its_tensor",),
    ),
    7: (
        "another shape, dtype, tokenizer or architecture than the family's",
        ("hostile/test_runs.py::test_bad_checkpoints",)
        + ("hostile/test_checkpoints.py::test_weights_that_are_not_those_of_the_config_are_refused",)
        + ("hostile/test_checkpoints.py::test_integers_and_float8_are_no_weights",)
        + ("hostile/test_checkpoints.py::test_a_malformed_tokenizer_is_no_stack_trace",),
    ),
    8: (
        "200,000 tensors, 1 MB of metadata, too many files, too large a config",
        ("hostile/test_checkpoint_headers.py::test_a_bad_header",)
        + ("hostile/test_checkpoints.py::test_a_symlink_as_the_folder_a_pipe_and_too_many_files",)
        + ("hostile/test_checkpoints.py::test_a_config_of_any_size_is_not_read",),
    ),
    9: (
        "a config that names code or an unknown model type",
        ("hostile/test_checkpoints.py::test_a_config_that_names_code",)
        + ("hostile/test_checkpoints.py::test_another_config_that_names_code",),
    ),
    10: (
        "archives with outside members, links or a ratio of 1000:1",
        ("hostile/test_archives.py::test_an_archive_in_place_of_a_checkpoint_is_refused",)
        + ("hostile/test_archives.py::test_an_archive_in_place_of_a_set_is_refused",)
        + ("hostile/test_archives.py::test_a_packed_file_of_a_thousand_times_its_size_is_read_up_to_the_limit",),
    ),
    11: (
        "a link out of the checkpoint's folder",
        ("hostile/test_checkpoints.py::test_a_link_that_leaves_the_folder",),
    ),
    12: (
        "a flipped byte in an S3 object",
        ("s3/test_real_s3.py::test_one_swapped_byte_on_s3_is_named",)
        + ("checkpoints/test_remote_sources.py::test_a_byte_changed_in_s3_is_found_when_the_copy_is_needed_again",),
    ),
    13: (
        "a planted .github file",
        ("ledger/test_audit.py::test_a_file_planted_in_a_release_or_an_artefact_is_named",),
    ),
    14: (
        "an old vector under a new name",
        ("ledger/test_audit.py::test_a_replayed_old_vector_is_named",),
    ),
    15: (
        "an unknown or revoked key, an expired override, an approval by the author",
        ("hostile/test_ledger.py::test_a_record_of_an_unknown_key_is_refused",)
        + ("ledger/test_key_changes.py::test_what_a_revoked_key_signed_is_not_relied_on_from_a_record_on",)
        + ("ledger/test_override.py::test_an_expired_override_is_not_served_and_not_rolled_back_to",)
        + ("ledger/test_approval.py::test_the_author_does_not_approve",),
    ),
    16: (
        "a record edited, deleted or reordered",
        ("hostile/test_ledger.py::test_an_edited_record_is_named",)
        + ("hostile/test_ledger.py::test_a_deleted_record_is_named",)
        + ("hostile/test_ledger.py::test_reordered_records_are_named",),
    ),
    17: (
        "two promoters at once",
        ("ledger/test_promotion.py::test_promoters_at_once_leave_one_live_and_each_on_record",)
        + ("ledger/test_promotion.py::test_the_losing_promotion_is_refused_and_names_the_winner",)
        + ("pipeline/test_work.py::test_a_run_that_was_taken_over_puts_nothing_live_and_its_record_says_who_won",),
    ),
    18: (
        "a kill anywhere, a lost reply, a full disk",
        ("hostile/test_ledger.py::test_a_promoter_killed_anywhere_leaves_no_half_promotion",)
        + ("hostile/test_network.py::test_a_lost_reply_at_every_write_is_settled",)
        + ("hostile/test_full_disk.py::test_the_disk_of_the_workspace_is_full_at_any_write",),
    ),
    19: (
        "a store that ignores conditions",
        ("hostile/test_network.py::test_nothing_is_promoted_on_a_store_that_misbehaves",)
        + ("ledger/test_store.py::test_a_store_that_ignores_conditions_is_refused_by_name",),
    ),
    20: (
        "a judge that is empty, refusing, failing, cut off or of two minds: inconclusive",
        ("hostile/test_gate.py::test_a_judge_that_does_not_judge",)
        + ("hostile/test_network.py::test_a_judge_that_never_ends_its_answer_is_given_up",),
    ),
    21: (
        "a reply that forges a verdict or closes the judge's marks",
        ("hostile/test_gate.py::test_a_reply_that_claims_a_verdict_is_judged_like_any_other",)
        + ("evaluation/judges/test_chat.py::test_an_answer_with_the_replys_marks_is_unscored",),
    ),
    22: (
        "a judge at a private, link-local or file address, or one that redirects",
        ("evaluation/judges/test_chat.py::test_addresses_that_a_judge_may_not_have",)
        + ("hostile/test_network.py::test_a_model_server_that_never_ends_its_answer_is_an_error",),
    ),
    23: (
        "model output with markup, terminal sequences, text direction or a spreadsheet's formulas",
        ("report/test_report.py::test_hostile_output_is_text_and_nothing_else",)
        + ("report/test_report.py::test_markdown_is_one_table_whose_cells_cannot_break_out",)
        + ("hostile/test_formulas.py",)
        + ("hostile/test_words.py",),
    ),
    24: (
        "secrets in addresses, errors, parameters and the environment",
        ("hostile/test_secrets.py::test_a_secret_in_a_file_of_parameters_is_refused_where_it_is_read",)
        + ("hostile/test_secrets.py::test_a_record_of_an_error_holds_no_secret",)
        + ("hostile/test_secrets.py::test_keys_in_the_environment_are_in_no_output",)
        + ("hostile/test_runs.py::test_bad_checkpoints",)
        + ("checkpoints/test_checkpoint.py::test_a_model_is_loaded_without_credentials_in_the_environment",),
    ),
    25: (
        "YAML with tags, aliases, keys twice, 1e9 or NaN as a threshold",
        ("workspace/test_params.py::test_yaml_beyond_plain_data_is_refused",)
        + ("workspace/test_params.py::test_wrong_values_are_named",)
        + ("hostile/test_gate.py::test_a_margin_that_lets_everything_pass",),
    ),
}


def test_there_are_twenty_five() -> None:
    assert sorted(KINDS) == list(range(1, 26))


@pytest.mark.parametrize("number", KINDS)
def test_a_kind_has_its_tests(number: int) -> None:
    kind, names = KINDS[number]
    assert kind
    assert names
    for name in names:
        path, _, function = name.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in defined, f"{name} of kind {number}"

"""Tests that run with the slow ones: variants of a law that a sibling shows in the fast suite.

Each costs 2 to 17 CPU seconds, and CI has 15 minutes on two cores. A name stands without its
variant where all of them are slow. `conftest.py` marks them, and refuses names that are no tests.
"""

DOUBLES = {
    "decoder/test_all_states.py": ["test_a_stream_a_question_and_its_answer_are_one_pass[two]"],
    "decoder/test_mixers.py": [
        f"test_every_memory_runs_on_the_layers_that_attend[{name}]"
        for name in ("rekv", "hermes", "moviechat")
    ],
    "experiments/stream/test_going_on.py": ["test_every_memory_goes_on[rekv]"],
    "experiments/stream/test_model_cli.py": [
        "test_a_checkpoint_streams_a_clip_and_answers[qwen2_5_omni]"
    ],
    "golden/test_golden_dma.py": ["test_any_chunking_is_the_recorded_layer[layer-7]"],
    "golden/test_golden_mamba2.py": [
        "test_one_pass_and_its_gradients[mamba2_one_group]",
        "test_pieces_go_on_from_the_states_of_the_last[mamba2_one_group]",
    ],
    "golden/test_hermes_golden.py": ["test_stream[stream_qwen_eager]"],
    "golden/test_infinipot_golden.py": ["test_kept_sets_and_scores[pooled_large]"],
    "golden/test_rekv_golden.py": [
        "test_stream_and_question[batch2-0]",
        "test_stream_and_question[chunk_remainder-0]",
    ],
    "kernels/test_kernels_attend_mass.py": ["test_a_soft_cap_is_that_of_the_reference[-softmax]"],
    "kernels/test_kernels_scan.py": [
        "test_gradients_through_the_state[pallas_interpret-wide-delta]",
        "test_gradients_through_the_state[pallas_interpret-wide-ssd]",
    ],
    "memory/bank/test_bank_clock.py": [
        *(
            f"test_a_stream_that_moves_its_clock_equals_one_that_does_not[{name}]"
            for name in (
                "in codes-three times",
                "omnimem-three times",
                "omnimem, positions kept-nine times",
            )
        ),
        "test_hermes_moves_its_clock",
    ],
    "memory/compression/test_retention.py": [
        "test_streaming_is_full_attention_with_the_mask[0.34-sizes2]"
    ],
    "memory/features/test_feature_memories.py": [
        "test_question_after_the_memory_equals_one_pass[qwen-3]"
    ],
    "memory/flexmem/test_flexmem.py": [
        "test_is_the_plain_loop[True-True-60-long]",
        "test_is_the_plain_loop[True-False-24-long]",
        "test_short_chunks_stay_recallable[reader1]",
    ],
    "memory/flexmem/test_flexmem_stream.py": [
        "test_a_session_runs_the_defaults[memindex]",
        "test_ample_budget_is_full_attention[encoding-True]",
        "test_row_mass_counts_what_the_view_says",
    ],
    "memory/parts/test_prioritized.py": ["test_frames_are_counted_by_arrival_in_the_loop[random]"],
    "memory/parts/test_softly.py": [
        "test_the_gradient_is_that_of_finite_differences_in_float64[omnimem]"
    ],
    "mixers/test_laws.py": [
        f"test_gradients_in_float64_are_those_of_single_tokens_through_the_state[{name}]"
        for name in ("mamba2_blocks", "gated_delta_blocks", "mamba2_biases")
    ],
    "models/hf/test_peft.py": ["test_what_is_written_is_read_as_what_is_merged[own_qwen3_5]"],
    "models/mamba/test_nemotron_h.py": [
        "test_a_stream_is_plain_loops_and_a_memory_bounds_its_layer_that_attends"
    ],
    "parity/test_llava_video.py": ["test_stream_in_chunks_is_one_pass"],
    "parity/test_qwen2_5_omni.py": ["test_ten_hours"],
    "parity/test_qwen2_vl.py": ["test_stream_is_the_offline_prompt"],
    "parity/test_qwen3_5_model.py": [
        "test_every_memory_streams_asks_and_goes_on_after_a_save[recent]"
    ],
    "parity/test_qwen3_vl.py": ["test_ten_hours"],
    "parity/test_qwen_models.py": ["test_stream_is_the_offline_prompt[qwen3_5]"],
    "parity/test_salmonn.py": ["test_stream_is_the_offline_prompt[qwen3_vl]"],
    "parity/test_salmonn_released.py": [
        "test_a_file_of_sound_alone_is_the_released_prompt[qwen3_vl]",
        "test_sound_alone_from_the_command_line[qwen2_5_vl]",
    ],
    "test_cli_stream.py": [
        f"test_feeding_segments_is_what_a_session_does[{name}]"
        for name in ("flexmem", "hermes", "flash_vstream")
    ],
    "test_embedding.py": [
        *(
            f"test_all_blocks_together_answer_as_the_decoder_of_the_package[{name}]"
            for name in ("rekv", "hermes", "h2o", "snapkv")
        ),
        "test_blocks_by_themselves_answer_as_the_decoder_of_the_package[rekv]",
        "test_flax_decoders_answer_as_the_decoder_of_the_package[nnx-hermes]",
        "test_flax_decoders_answer_as_the_decoder_of_the_package[nnx-rekv]",
        "test_memories_of_all_blocks_say_so[dscache]",
    ],
    "test_finite.py": ["test_float16_that_overflows"],
    "training/test_answers.py": [
        "test_every_memory_trains_a_step_or_says_why_not[moviechat]",
        "test_one_compilation_serves_all_budgets_and_each_is_that_of_its_own_memory",
        "test_the_gradient_is_that_of_the_plain_loop[recent]",
    ],
}
"""File -> names, with their variant in brackets."""

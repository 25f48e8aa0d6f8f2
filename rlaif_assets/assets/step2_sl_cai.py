"""Step 2: supervised fine-tuning on revisions and helpful answers. How belongs to `training.sft`."""

import dagster as dg

from rlaif_assets.assets.configuration import SlCaiCheckpointConfig
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.records import Answer, Revision
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking

LINEAGE = {
    "prompt_id": "helpful_prompts.prompt_id",
    "text": "helpful_prompts.messages base_model.fingerprint",
}


@dg.asset(
    deps=["revised_responses", "base_model", "red_team_prompts", "helpful_prompts"],
    group_name="step_2_sl_cai",
    owners=["team:alignment"],
    kinds={"trl", "huggingface", "mlflow"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="3",
    metadata=table_metadata("answers", Answer, LINEAGE),
)
def sl_cai_checkpoint(
    context: dg.AssetExecutionContext,
    config: SlCaiCheckpointConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The base model fine-tuned on revisions, and on its own answers to helpful prompts so that it stays helpful."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.feedback.helpful import helpful_answers
        from rlaif_assets.training import examples
        from rlaif_assets.training.sft import train_sft

        stage.require_made_from("revised_responses", "red_team_prompts")
        revisions = stage.rows(Revision, "revised_responses", "revisions")
        limit = stage.inputs["revised_responses"].settings["max_new_tokens"]
        revisions, unfinished = examples.finished_revisions(
            examples.revisions_to_imitate(revisions, config.revisions, config.rounds), limit
        )
        harmful, helpful = stage.prompts("red_team_prompts"), stage.prompts("helpful_prompts")
        count = round(config.helpful_ratio * len(revisions))
        answers, rejected = helpful_answers(stage.model("base_model"), helpful, count, config, stage.progress)
        rows = examples.sft_examples(examples.prompts_by_id(harmful, helpful), revisions, answers)
        train, heldout = examples.split_heldout(rows, examples.conversation_id, config.heldout_share, config.seed)
        base, folder = stage.folder("base_model"), stage.work_folder()
        metrics = train_sft(base, train, heldout, config, folder, compute.settings(), stage.mlflow.log, stage.progress)
        used = examples.training_rows(train, heldout, metrics["dropped_row_ids"])
        rejected += unfinished + examples.dropped_rows(metrics, config.max_length)
        tables = {"answers": answers, "training_rows": used}
        return Product(tables, rejected, folder, metrics, metrics["tokens"])

    return stage.record(work, role="train")

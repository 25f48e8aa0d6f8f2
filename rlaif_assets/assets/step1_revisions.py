"""Step 1: responses of the helpful-only model, critiqued and revised. How belongs to `feedback.revision`."""

import dagster as dg

from rlaif_assets.assets.configuration import RevisedResponsesConfig
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.records import CritiqueConstitution, CritiqueExample, CritiquePrinciple, Revision
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking

LINEAGE = {
    "prompt_id": "red_team_prompts.prompt_id",
    "text": "red_team_prompts.messages critique_constitution.revision_request base_model.fingerprint",
    "critique": "red_team_prompts.messages critique_constitution.critique_request base_model.fingerprint",
    "principle_id": "critique_constitution.principle_id",
}


@dg.asset(
    deps=["base_model", "critique_constitution", "red_team_prompts"],
    group_name="step_1_revisions",
    owners=["team:alignment"],
    kinds={"duckdb", "huggingface"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="1",
    metadata=table_metadata("revisions", Revision, LINEAGE),
)
def revised_responses(
    context: dg.AssetExecutionContext,
    config: RevisedResponsesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """A response to each red-team prompt of the train split, then rounds of critique and revision under principles."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.feedback.revision import revise

        constitution = CritiqueConstitution(
            tuple(stage.rows(CritiquePrinciple, "critique_constitution", "critique_principles")),
            tuple(stage.rows(CritiqueExample, "critique_constitution", "critique_examples")),
        )
        prompts = stage.prompts("red_team_prompts")
        stage.progress.expect(len(prompts) * (1 + config.rounds * (2 if config.critique else 1)))
        revisions, rejected = revise(stage.model("base_model"), constitution, prompts, config, stage.progress)
        return Product({"revisions": revisions}, rejected, tokens=sum(row.tokens_out for row in revisions))

    return stage.record(work)

-- The warehouse's tables. Append-only: no keys, no indexes, no UPDATE or DELETE. Data tables hold the fields of the
-- classes in records.py, in their order, after snapshot_id and position (the row's place in its snapshot, from 0).
-- A change here that old files do not have needs another SCHEMA_VERSION in warehouse.py.

CREATE TABLE schema_version (version BIGINT);

CREATE TABLE snapshots (
    position BIGINT, snapshot_id VARCHAR, asset VARCHAR, key VARCHAR, content_hash VARCHAR, created_at VARCHAR,
    settings JSON, inputs JSON, code_version BIGINT, row_counts JSON, table_hashes JSON, path VARCHAR, metrics JSON,
    mlflow_run_id VARCHAR, dagster_run_id VARCHAR, git_commit VARCHAR, git_dirty BOOLEAN, device VARCHAR,
    seconds DOUBLE, tokens BIGINT, attempt BIGINT
);

CREATE TABLE materializations (
    position BIGINT, snapshot_id VARCHAR, asset VARCHAR, dagster_run_id VARCHAR, reused BOOLEAN, created_at VARCHAR
);

-- Versions of registered models and the names that point to them; the last row of an alias counts. A version is one
-- snapshot for ever; what MLflow calls it (mlflow_version) changes with MLflow's database, and the last one counts.
CREATE TABLE registrations (
    position BIGINT, name VARCHAR, version BIGINT, snapshot_id VARCHAR, mlflow_version BIGINT, created_at VARCHAR
);

CREATE TABLE aliases (
    position BIGINT, name VARCHAR, alias VARCHAR, version BIGINT, who VARCHAR, why VARCHAR, created_at VARCHAR
);

-- Weights, artifacts and states that `pruning.py` took out of the home; snapshot_id is null where none named the path.
CREATE TABLE removals (
    position BIGINT, snapshot_id VARCHAR, path VARCHAR, bytes BIGINT, who VARCHAR, why VARCHAR, created_at VARCHAR
);

-- Every look of a judge, once: not of a snapshot, labels name judgement ids. Only `judgements.py` adds to it.
CREATE TABLE judgements (
    judgement_id VARCHAR, pair_id VARCHAR, principle_id VARCHAR, "order" VARCHAR, logprob_first DOUBLE,
    logprob_second DOUBLE, p_a DOUBLE, judge VARCHAR, template VARCHAR, tokens_in BIGINT, tokens_out BIGINT,
    method VARCHAR, rationale VARCHAR, round BIGINT, question_id VARCHAR, as_of VARCHAR, seconds DOUBLE,
    created_at VARCHAR, dagster_run_id VARCHAR
);

-- Sources

CREATE TABLE prompts (
    snapshot_id VARCHAR, position BIGINT, prompt_id VARCHAR, messages JSON, split VARCHAR, kind VARCHAR,
    source VARCHAR, category VARCHAR, intent VARCHAR
);

CREATE TABLE critique_principles (
    snapshot_id VARCHAR, position BIGINT, principle_id VARCHAR, name VARCHAR, critique_request VARCHAR,
    revision_request VARCHAR, kind VARCHAR
);

CREATE TABLE critique_examples (
    snapshot_id VARCHAR, position BIGINT, example_id VARCHAR, prompt VARCHAR, response VARCHAR,
    critique_request VARCHAR, critique VARCHAR, revision_request VARCHAR, revision VARCHAR
);

CREATE TABLE judging_principles (
    snapshot_id VARCHAR, position BIGINT, principle_id VARCHAR, name VARCHAR, text VARCHAR, kind VARCHAR,
    counter VARCHAR
);

CREATE TABLE judging_examples (
    snapshot_id VARCHAR, position BIGINT, example_id VARCHAR, prompt VARCHAR, first VARCHAR, second VARCHAR,
    principle VARCHAR, better BIGINT
);

CREATE TABLE comparisons (
    snapshot_id VARCHAR, position BIGINT, comparison_id VARCHAR, messages JSON, response_a VARCHAR,
    response_b VARCHAR, p_a DOUBLE, source VARCHAR, annotator VARCHAR, split VARCHAR
);

CREATE TABLE community_answers (
    snapshot_id VARCHAR, position BIGINT, answer_id VARCHAR, question_id VARCHAR, question VARCHAR, text VARCHAR,
    votes BIGINT, accepted BOOLEAN, score BIGINT
);

CREATE TABLE community_pairs (
    snapshot_id VARCHAR, position BIGINT, pair_id VARCHAR, question_id VARCHAR, better_id VARCHAR, worse_id VARCHAR,
    question VARCHAR, better VARCHAR, worse VARCHAR
);

CREATE TABLE human_verdicts (
    snapshot_id VARCHAR, position BIGINT, verdict_id VARCHAR, pair_id VARCHAR, messages JSON, response_a VARCHAR,
    response_b VARCHAR, p_a DOUBLE, annotator VARCHAR, time VARCHAR
);

CREATE TABLE external_models (
    snapshot_id VARCHAR, position BIGINT, fingerprint VARCHAR, source VARCHAR, revision VARCHAR,
    architecture VARCHAR, parameters BIGINT, model VARCHAR, verdicts VARCHAR
);

-- Steps 1 to 5

CREATE TABLE revisions (
    snapshot_id VARCHAR, position BIGINT, revision_id VARCHAR, prompt_id VARCHAR, round BIGINT, text VARCHAR,
    parent_id VARCHAR, principle_id VARCHAR, critique VARCHAR, seed BIGINT, tokens_in BIGINT, tokens_out BIGINT,
    finished BOOLEAN, critique_seed BIGINT
);

CREATE TABLE answers (
    snapshot_id VARCHAR, position BIGINT, answer_id VARCHAR, prompt_id VARCHAR, text VARCHAR, seed BIGINT,
    tokens_in BIGINT, tokens_out BIGINT, finished BOOLEAN
);

CREATE TABLE pairs (
    snapshot_id VARCHAR, position BIGINT, pair_id VARCHAR, prompt_id VARCHAR, response_a_id VARCHAR,
    response_b_id VARCHAR, response_a VARCHAR, response_b VARCHAR, seed_a BIGINT, seed_b BIGINT, tokens_out BIGINT
);

CREATE TABLE labels (
    snapshot_id VARCHAR, position BIGINT, label_id VARCHAR, pair_id VARCHAR, principle_id VARCHAR, p_a DOUBLE,
    judgement_ids JSON, flipped BOOLEAN, source VARCHAR, annotator VARCHAR, orders VARCHAR, verdict_ids JSON,
    judgements_hash VARCHAR
);

CREATE TABLE label_changes (
    snapshot_id VARCHAR, position BIGINT, scope VARCHAR, name VARCHAR, labels BIGINT, flipped BIGINT,
    mean_change DOUBLE
);

CREATE TABLE label_flips (
    snapshot_id VARCHAR, position BIGINT, pair_id VARCHAR, prompt VARCHAR, response_a VARCHAR, response_b VARCHAR,
    category VARCHAR, old_principle VARCHAR, new_principle VARCHAR, old_source VARCHAR, new_source VARCHAR,
    old_p_a DOUBLE, new_p_a DOUBLE
);

CREATE TABLE verdicts (
    snapshot_id VARCHAR, position BIGINT, audit VARCHAR, passed BOOLEAN, value DOUBLE, threshold DOUBLE, note VARCHAR,
    count BIGINT, blocks BOOLEAN
);

-- Labels that an audit compared: the label's p_a (or people's) and that of the same pair when it was judged otherwise.
CREATE TABLE audit_probes (
    snapshot_id VARCHAR, position BIGINT, audit VARCHAR, pair_id VARCHAR, principle_id VARCHAR, p_a DOUBLE,
    other DOUBLE
);

-- The rows that a training stage used: role train or heldout.
CREATE TABLE training_rows (
    snapshot_id VARCHAR, position BIGINT, row_id VARCHAR, role VARCHAR, source VARCHAR
);

CREATE TABLE rollouts (
    snapshot_id VARCHAR, position BIGINT, prompt_id VARCHAR, "update" BIGINT, text VARCHAR, score DOUBLE, kl DOUBLE,
    tokens BIGINT
);

-- Evaluation

CREATE TABLE evaluation_answers (
    snapshot_id VARCHAR, position BIGINT, answer_id VARCHAR, policy VARCHAR, prompt_id VARCHAR, split VARCHAR,
    kind VARCHAR, intent VARCHAR, sample BIGINT, text VARCHAR, verdict VARCHAR, tokens BIGINT, kl DOUBLE, seed BIGINT
);

CREATE TABLE evaluation_rates (
    snapshot_id VARCHAR, position BIGINT, split VARCHAR, subject VARCHAR, measure VARCHAR, value DOUBLE, low DOUBLE,
    high DOUBLE, count BIGINT, note VARCHAR
);

CREATE TABLE promotion_rules (
    snapshot_id VARCHAR, position BIGINT, rule VARCHAR, passed BOOLEAN, blocks BOOLEAN, value DOUBLE, low DOUBLE,
    high DOUBLE, threshold DOUBLE, note VARCHAR
);

CREATE TABLE rejected_rows (
    snapshot_id VARCHAR, position BIGINT, "where" VARCHAR, reason VARCHAR, text VARCHAR
);

# Makes everything in the published folders: weights, results, cards. The Makefile at the root includes this file.
# `make release` takes hours; each step can also be run alone.

# The published model, its training, and its evaluation.
CARD := hub_cards/taae-speech-16k-nano
SPEECH ?= $(or $(TAAE_SHARED),../shared)/speech
RUN ?= runs/nano
CHECKPOINT ?= $(RUN)/model
TRAINED_ON ?= two CPU cores
# Assumed power of each process of the run, in W.
WATTS ?= 10
# Data sets to read the recordings of hub_cards/samples/clips.yaml from; empty keeps the present recordings.
RECORDINGS ?=
# If the run continued a published model: that model's earlier folder, and what its weights were averaged with.
AFTER ?=
AVERAGED ?=
TRAINING_SPEECH ?= $(SPEECH)/train-*.parquet $(SPEECH)/train_more-*.parquet
# An utterance of LJ Speech, which is in the public domain.
DEMO = '$(SPEECH)/train-*.parquet' lj-LJ001-0036
BOTTLENECKS := 1x46656_400bps 2x15625_700bps
METRICS ?= pesq_wb pesq_nb stoi si_sdr mel_distance stft_distance dnsmos_p808
# The evaluation by networks, with neural peers: six minutes of one core for each codec, two for the originals.
JUDGED_METRICS := pesq_wb stoi dnsmos_p808 wer cer dwer dcer speaker_similarity distillmos
NEURAL_PEERS := lyra-3.2k lyra-6k opus-6k-nolace opus-6k codec2-700C
# Speech in many languages, prepared with `training/corpora/prepare.py cv61_60_languages --part test`.
LANGUAGES ?= runs/languages/*.parquet
# What was judged for other models: their originals and peers are not judged again.
ROWS ?= $(filter-out $(CARD:%/=%)/%,$(wildcard hub_cards/*/results/judged/rows.jsonl))
# Points of the curve: the presets, and three and nine levels per dimension. Trials on a part of the data take minutes.
STAGES = 3,3,3,3,3,3@1.0 1x46656_400bps 9,9,9,9,9,9@1.0 native $(wordlist 2,3,$(PRESETS))
TRIALS := --metrics pesq_wb stoi mel_distance --samples 0 --no-speed
# Folder of the language models of its tokens; after a change of the weights, choose another or remove it.
LANGUAGE_MODELS ?= $(RUN)/language_models
PRESETS := 1x46656_400bps 2x15625_700bps 4x729_1000bps
BUDGET ?= --budget.crop_frames 100 --budget.batch_size 4 --budget.max_steps 300
PEERS := codec2-450 codec2-700C codec2-1200 codec2-2400 opus-6k pcm16
# Steps for new weights, in the order of their needs; those in the middle only for the documentation's model.
SHOWN := $(filter %/taae-speech-16k-nano,$(CARD:%/=%))
RELEASE := weights prior provenance results judged languages entropy determinism exports \
	$(if $(SHOWN),presets protocols probes language-models page notebook) pictures samples card

.PHONY: release code weights prior entropy results judged languages presets protocols probes exports provenance determinism language-models page pictures benchmark stages samples card

release:  ## run all steps for new weights, which takes hours: make release RUN=runs/nano [CARD=hub_cards/taae-…]
	for step in $(RELEASE); do $(MAKE) $$step || exit; done

weights: $(VENV)/train.stamp  ## publish the weights CHECKPOINT of the run RUN in CARD, with a sample
	$(BIN)/python training/publish.py $(CHECKPOINT) $(CARD) --demo $(DEMO)

prior: $(VENV)/train.stamp  ## train the published model's prior for entropy coding
	$(BIN)/python training/make_entropy_prior.py $(CARD) $(TRAINING_SPEECH)

entropy: $(VENV)/eval.stamp  ## measure the size of files on SPEECH, with the prior
	$(BIN)/python training/measure.py file_sizes $(CARD) --speech $(SPEECH)/test-*.parquet

results: $(VENV)/eval.stamp  ## evaluate the published model beside its peers, on SPEECH
	$(BIN)/taae evaluate $(SPEECH)/test-*.parquet --model $(CARD) --bottleneck $(BOTTLENECKS) \
		--peers $(PEERS) --metrics $(METRICS) -o $(CARD)/results

judged: $(VENV)/judges.stamp  ## judge words, naturalness and voices by networks, beside neural codecs
	mkdir -p $(CARD)/results/judged
	$(if $(ROWS),cat $(ROWS) >> $(CARD)/results/judged/rows.jsonl)
	$(BIN)/taae evaluate $(SPEECH)/test-*.parquet --model $(CARD) \
		--transcripts $(SPEECH)/transcripts.parquet --peers $(NEURAL_PEERS) --metrics $(JUDGED_METRICS) \
		--samples 0 --no-speed -o $(CARD)/results/judged

$(VENV)/judges.stamp: $(VENV)/eval.stamp
	@$(BIN)/python -c 'from modeling_taae.cli.judges import install_judges; install_judges()'
	@touch $@

languages: $(VENV)/eval.stamp  ## evaluate the model in the languages of LANGUAGES
	$(BIN)/taae evaluate $(LANGUAGES) --model $(CARD) --bottleneck $(firstword $(BOTTLENECKS)) \
		--peers codec2-700C opus-6k $(TRIALS) -o $(CARD)/results/languages

presets: $(VENV)/eval.stamp  ## evaluate every preset of the published model, and draw quality against bit rate
	$(BIN)/taae evaluate $(SPEECH)/test-*.parquet --model $(CARD) --bottleneck $(STAGES) --limit 60 \
		--peers $(filter-out pcm16,$(PEERS)) $(TRIALS) -o $(CARD)/results/presets
	$(BIN)/python hub_cards/cards/make_pictures.py $(CARD)

protocols: $(VENV)/eval.stamp  ## try the published model with noise, rooms, lengths, unseen languages, tandems and losses
	$(BIN)/taae evaluate $(SPEECH)/test-*.parquet --model $(CARD) --limit 30 --noise $(SPEECH)/robustness-*.parquet \
		--snr 20 10 0 --reverb $(SPEECH)/robustness-*.parquet --lengths 1 10 60 600 --music \
		--peers codec2-700C opus-6k $(TRIALS) -o $(CARD)/results/robustness
	$(BIN)/taae evaluate $(SPEECH)/test_multilingual_gpl-*.parquet --model $(CARD) --bottleneck $(BOTTLENECKS) \
		--peers codec2-700C $(TRIALS) -o $(CARD)/results/multilingual
	$(BIN)/taae evaluate $(SPEECH)/test-*.parquet --model $(CARD) --limit 30 --tandem 5 --packet-loss 0.02 0.05 0.1 \
		--peers codec2-700C opus-6k $(TRIALS) -o $(CARD)/results/transmission

probes: $(VENV)/eval.stamp  ## predict language, gender, speaker and phonemes from the published model's tokens
	$(BIN)/python training/measure.py probes $(CARD) --phonemes $(SPEECH)/transcripts.parquet \
		--speech $(SPEECH)/test-*.parquet $(SPEECH)/validation-*.parquet $(SPEECH)/train_more-*.parquet \
		--train $(SPEECH)/train-0000[01]-*.parquet

exports: $(VENV)/eval.stamp $(VENV)/export.stamp  ## export the published model in every format, and measure it on speech
	$(BIN)/python training/measure.py exports $(CARD) --speech $(SPEECH)/test-*.parquet --limit 30

provenance: $(VENV)/train.stamp  ## write the provenance and the curves of the run RUN
	$(BIN)/python hub_cards/cards/make_provenance.py $(CARD) --run $(RUN) --trained-on "$(TRAINED_ON)" \
		--watts $(WATTS) $(if $(AFTER),--after $(AFTER)) $(if $(AVERAGED),--averaged "$(AVERAGED)") \
		--data $(TRAINING_SPEECH)

determinism: $(VENV)/eval.stamp  ## count the tokens that change with threads, batches, dtype, attention and compiler
	$(BIN)/python training/measure.py determinism $(CARD) --speech $(SPEECH)/test-*.parquet

language-models: $(VENV)/train.stamp  ## compare presets and layouts as tokens of small language models, on SPEECH
	for preset in $(PRESETS); do for part in train validation; do \
		$(BIN)/taae tokenize $(SPEECH)/$$part-0000[01]-*.parquet --model $(CARD) --bottleneck $$preset \
			-o $(LANGUAGE_MODELS)/tokens/$$preset/$$part || exit; \
	done; done
	$(BIN)/python training/compare_speech_lms.py --tokens $(LANGUAGE_MODELS)/tokens --output_dir $(LANGUAGE_MODELS) \
		--texts $(SPEECH)/transcripts.parquet --with_texts '[4x729_1000bps]' --codec $(CARD) \
		--results $(CARD)/results $(BUDGET)

page: $(VENV)/eval.stamp web  ## measure the effect of 8-bit weights on the page
	$(BIN)/python hub_cards/web/measure.py $(SPEECH)/test-*.parquet --model $(CARD)

pictures: $(VENV)/eval.stamp  ## draw the model card's pictures
	$(BIN)/python hub_cards/cards/make_pictures.py $(CARD) --speech $(SPEECH)/test-*.parquet

benchmark: $(VENV)/train.stamp $(VENV)/export.stamp  ## measure the speed of training and inference, for training/README.md
	$(BIN)/python training/benchmark.py --json training/benchmarks/benchmark.json --readme training/README.md

stages: $(VENV)/train.stamp $(VENV)/eval.stamp  ## measure the effect of training stages at nano size, for training/README.md, which takes hours
	$(BIN)/python training/experiment.py stages --json training/experiments/results/stages.json --readme training/README.md

code: $(VENV)/demo.stamp  ## copy the model's code into the published folders, after a change
	$(BIN)/python hub_cards/model_code.py $(patsubst %/config.json,%,$(wildcard hub_cards/*/config.json))

samples: $(VENV)/eval.stamp  ## encode and decode the recordings of hub_cards/samples with models and other codecs, for docs/samples.html
	$(BIN)/python hub_cards/cards/make_samples.py $(if $(RECORDINGS),--recordings $(RECORDINGS))

card: $(VENV)/eval.stamp  ## write the cards of the model, from results and provenance, of the metrics and the Space
	$(BIN)/python hub_cards/make_card.py $(CARD) hub_cards/space $(wildcard hub_cards/metrics/*)

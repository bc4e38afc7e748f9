# Each target says what it does with `make help`; what a target needs it makes or installs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check up lock clean verify bench nix

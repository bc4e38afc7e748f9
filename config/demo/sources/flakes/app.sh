#!/bin/sh
echo "an app out of a flake"

"""jscc-edge: deployable receivers for deep joint source-channel coding."""

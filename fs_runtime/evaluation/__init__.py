"""What a defence is worth: accuracy and attack success, certified similarity and cost, with their uncertainty."""

"""What a teacher does: hand out exercises, grade a class without internet, keep a grade book."""

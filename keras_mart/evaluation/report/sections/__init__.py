"""The sections of the report: one file each, with a function from all subjects to the section."""

from keras_mart.evaluation.report.sections.attacks import attacks
from keras_mart.evaluation.report.sections.checks import checks
from keras_mart.evaluation.report.sections.classes import classes
from keras_mart.evaluation.report.sections.configuration import configuration
from keras_mart.evaluation.report.sections.confusion import confusion
from keras_mart.evaluation.report.sections.curves import curves
from keras_mart.evaluation.report.sections.epsilon import epsilon
from keras_mart.evaluation.report.sections.gallery import gallery
from keras_mart.evaluation.report.sections.gap import gap
from keras_mart.evaluation.report.sections.summary import summary

SECTIONS = (summary, curves, attacks, classes, epsilon, gap, checks, confusion, gallery, configuration)
